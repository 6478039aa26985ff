//! What happens in the cluster, for `/eventstream`.

use std::pin::pin;
use std::sync::Arc;

use oxidask_http::info::{StreamEvent, TaskRun};
use oxidask_scheduler::State;
use oxidask_scheduler::task::TaskRecord;
use oxidask_server::scheduler::{Happening, Info};
use oxidask_wire::Value;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};

/// Events that wait for a page to read them; what comes then stays with the
/// scheduler, which drops the oldest.
pub(super) const WAITING_MAX: usize = 256;

/// Passes on what happens until the page or the scheduler closes. A page that
/// reads too slowly loses events at the scheduler's end.
pub(super) async fn forward(
    info: Info,
    mut happenings: broadcast::Receiver<Arc<Happening>>,
    sender: mpsc::Sender<StreamEvent>,
) {
    let mut closing = pin!(info.closing());
    loop {
        let happening = tokio::select! {
            happening = happenings.recv() => happening,
            () = sender.closed() => return,
            () = &mut closing => return,
        };
        let event = match happening {
            Ok(happening) => event(&happening),
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        tokio::select! {
            sent = sender.send(event) => if sent.is_err() {
                return;
            },
            () = &mut closing => return,
        }
    }
}

fn event(happening: &Happening) -> StreamEvent {
    match happening {
        Happening::Restarted => StreamEvent::Restart,
        Happening::WorkerAdded(address) => StreamEvent::AddWorker {
            worker: address.to_string(),
        },
        Happening::WorkerRemoved(address) => StreamEvent::RemoveWorker {
            worker: address.to_string(),
        },
        Happening::ClientAdded(name) => StreamEvent::AddClient {
            client: name.to_string(),
        },
        Happening::ClientRemoved(name) => StreamEvent::RemoveClient {
            client: name.to_string(),
        },
        Happening::GraphAdded(name) => StreamEvent::UpdateGraph {
            client: name.to_string(),
        },
        Happening::TaskRan(record) => StreamEvent::Transition(run(record)),
    }
}

fn run(record: &TaskRecord) -> TaskRun {
    let status = if record.finish == State::Erred {
        "error"
    } else {
        "OK"
    };
    let actions = record.startstops.as_array().unwrap_or_default();
    TaskRun {
        key: record.key.python_str(),
        prefix: record.key.key_split().into_owned(),
        worker: record.worker.to_string(),
        status: status.to_owned(),
        nbytes: u64::try_from(record.nbytes).ok(),
        type_name: (!record.typename.is_empty()).then(|| record.typename.to_string()),
        thread: record.thread.as_u64(),
        stimulus_id: record.stimulus_id.to_string(),
        startstops: actions.iter().filter_map(action).collect(),
    }
}

/// `{action, start, stop}`.
fn action(action: &Value) -> Option<(String, f64, f64)> {
    let fields = action.as_map()?;
    let time = |name| fields.get(name).and_then(Value::as_f64);
    Some((
        fields.get("action")?.as_str()?.to_owned(),
        time("start")?,
        time("stop")?,
    ))
}

#[cfg(test)]
mod tests {
    use oxidask_wire::{Key, map};

    use super::*;

    fn record(finish: State) -> TaskRecord {
        let has_erred = finish == State::Erred;
        let transfer = map! {
            "action" => "transfer", "start" => 1.0, "stop" => 2, "source" => "tcp://10.0.0.4:1"
        };
        TaskRecord {
            key: Key::from_value(&Value::Array(vec!["inc-123".into(), 0.into()])).unwrap(),
            worker: "tcp://10.0.0.3:40000".into(),
            finish,
            nbytes: if has_erred { -1 } else { 28 },
            r#type: Default::default(),
            typename: if has_erred { "" } else { "int" }.into(),
            metadata: Value::Nil,
            thread: 7.into(),
            startstops: Value::Array(vec![transfer.into(), "no action".into()]),
            stimulus_id: "task-finished-1".into(),
        }
    }

    #[test]
    fn a_run_tells_where_and_how_long() {
        let expected = TaskRun {
            key: "('inc-123', 0)".to_owned(),
            prefix: "inc".to_owned(),
            worker: "tcp://10.0.0.3:40000".to_owned(),
            status: "OK".to_owned(),
            nbytes: Some(28),
            type_name: Some("int".to_owned()),
            thread: Some(7),
            stimulus_id: "task-finished-1".to_owned(),
            startstops: vec![("transfer".to_owned(), 1.0, 2.0)],
        };
        let happening = Happening::TaskRan(Box::new(record(State::Memory)));
        assert_eq!(event(&happening), StreamEvent::Transition(expected));
    }

    #[test]
    fn a_failed_run_has_no_result() {
        let run = run(&record(State::Erred));
        assert_eq!(
            (run.status.as_str(), run.nbytes, run.type_name),
            ("error", None, None)
        );
    }
}
