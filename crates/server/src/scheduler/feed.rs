//! `feed`: a function that runs in the plug-in host every so often, and a client
//! that gets each result.

use oxidask_comm::{Reader, Writer};
use oxidask_scheduler::Failure;
use oxidask_wire::Value;

use super::args::Args;
use super::plugin_host::Fed;
use super::shell::ShellHandle;

/// Serves a feed until its function fails; `None` when the client has gone.
pub(super) async fn serve(
    shell: &ShellHandle,
    args: Args,
    reader: &mut Reader,
    writer: &mut Writer,
) -> Option<Result<Value, Failure>> {
    let mut feed = match shell.host.feed(&args.0).await {
        Ok(feed) => feed,
        Err(failure) => return Some(Err(failure)),
    };
    loop {
        let fed = tokio::select! {
            fed = feed.next() => fed,
            () = reader.closed() => return None,
        };
        match fed {
            Fed::Message(frames) => {
                writer.write(&frames).await.ok()?;
                feed.sent();
            }
            Fed::Ended(result) => return Some(result),
        }
    }
}
