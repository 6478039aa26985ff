//! `/eventstream`: what happens in the cluster, as JSON over a WebSocket.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::ws::{Message, WebSocket};
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;

use crate::html::format_timestamp;
use crate::info::{SchedulerInfo, StreamEvent, TaskRun};

/// Colours of task names, chosen by a hash: easy to tell apart on white and on black.
const PALETTE: [&str; 8] = [
    "#4c78a8", "#f58518", "#54a24b", "#b279a2", "#72b7b2", "#eeca3b", "#9d755d", "#ff9da6",
];

/// Serves one connection until either side closes it.
pub(crate) async fn serve(
    mut socket: WebSocket,
    info: Arc<dyn SchedulerInfo>,
    mut events: Receiver<StreamEvent>,
) {
    let Ok(workers) = info.workers().await else {
        return;
    };
    for row in workers.rows {
        let event = StreamEvent::AddWorker {
            worker: row.address,
        };
        if send(&mut socket, &event).await.is_err() {
            return;
        }
    }
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => {
                    if send(&mut socket, &event).await.is_err() {
                        return;
                    }
                }
                None => return,
            },
            message = socket.recv() => match message {
                Some(Ok(Message::Text(text))) => {
                    if is_ping(&text) && socket.send(pong()).await.is_err() {
                        return;
                    }
                }
                Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
            },
        }
    }
}

async fn send(socket: &mut WebSocket, event: &StreamEvent) -> Result<(), axum::Error> {
    for message in messages(event) {
        socket
            .send(Message::Text(message.to_string().into()))
            .await?;
    }
    Ok(())
}

fn is_ping(text: &str) -> bool {
    let message: Option<Value> = serde_json::from_str(text).ok();
    message.is_some_and(|message| message["name"] == "ping")
}

fn pong() -> Message {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let message = json!({"name": "pong", "timestamp": format_timestamp(now.as_secs_f64())});
    Message::Text(message.to_string().into())
}

fn messages(event: &StreamEvent) -> Vec<Value> {
    match event {
        StreamEvent::Restart => vec![json!({"name": "restart"})],
        StreamEvent::AddWorker { worker } => {
            vec![json!({"name": "add_worker", "worker": worker})]
        }
        StreamEvent::RemoveWorker { worker } => {
            vec![json!({"name": "remove_worker", "worker": worker})]
        }
        StreamEvent::AddClient { client } => {
            vec![json!({"name": "add_client", "client": client})]
        }
        StreamEvent::RemoveClient { client } => {
            vec![json!({"name": "remove_client", "client": client})]
        }
        StreamEvent::UpdateGraph { client } => {
            vec![json!({"name": "update_graph", "client": client})]
        }
        StreamEvent::Transition(run) => run
            .startstops
            .iter()
            .map(|(action, start, stop)| {
                json!({
                    "name": "transition",
                    "key": run.key,
                    "color": color(run, action),
                    "worker": run.worker,
                    "status": run.status,
                    "nbytes": run.nbytes,
                    "typename": run.type_name,
                    "thread": run.thread,
                    "stimulus_id": run.stimulus_id,
                    "action": action,
                    "start": start,
                    "stop": stop,
                })
            })
            .collect(),
    }
}

fn color(run: &TaskRun, action: &str) -> &'static str {
    match action {
        "transfer" => "red",
        "disk-write" | "disk-read" => "orange",
        "deserialize" => "gray",
        _ if run.status != "OK" => "black",
        _ => {
            // FNV-1a: the same name has the same colour in every run.
            let hash = run
                .prefix
                .bytes()
                .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
                    (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
                });
            PALETTE[(hash % PALETTE.len() as u64) as usize]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_gives_one_message_per_action() {
        let event = StreamEvent::Transition(TaskRun {
            key: "inc-1".to_owned(),
            prefix: "inc".to_owned(),
            status: "OK".to_owned(),
            startstops: vec![
                ("transfer".to_owned(), 1.0, 2.0),
                ("compute".to_owned(), 2.0, 3.0),
            ],
            ..TaskRun::default()
        });
        let messages = messages(&event);
        assert_eq!(messages.len(), 2);
        assert_eq!(messages[0]["name"], "transition");
        assert_eq!(messages[0]["color"], "red");
        assert_eq!(messages[1]["stop"], 3.0);
    }

    #[test]
    fn only_pings_are_answered() {
        assert!(is_ping("{\"name\": \"ping\"}"));
        assert!(!is_ping("{\"name\": \"x\"}"));
        assert!(!is_ping("[1"));
    }
}
