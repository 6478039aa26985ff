//! Work of the core that needs Python: bundles, shuffle runs; and calls to
//! workers that an extension asks for.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use oxidask_scheduler::extensions::InputsDone;
use oxidask_scheduler::instruction::CreateShuffleRun;
use oxidask_scheduler::{Event, Failure, RequestId, RunSpec};
use oxidask_wire::{Map, Pickled, Value, map};

use super::shell::Shell;
use crate::graph_helper;

impl Shell {
    pub(super) fn explode_bundle(&mut self, bundle: u32, blob: Bytes) {
        let handle = self.handle.clone();
        tokio::spawn(async move {
            let exploded = graph_helper::explode(&handle.helpers, blob).await;
            let event = match exploded {
                Ok(specs) => Event::BundleExploded { bundle, specs },
                Err(error) => {
                    let raised = error.into_raised();
                    Event::BundleFailed {
                        bundle,
                        exception: raised.exception.into(),
                        traceback: raised.traceback.into(),
                        exception_text: raised.text.into(),
                        traceback_text: raised.traceback_text.into(),
                    }
                }
            };
            // An error means that the scheduler is shutting down.
            let _ = handle.events(vec![event]).await;
        });
    }

    pub(super) fn create_shuffle_run(&mut self, run: CreateShuffleRun) {
        let handle = self.handle.clone();
        tokio::spawn(async move {
            let CreateShuffleRun {
                shuffle_id,
                run_id,
                spec,
                span_id,
                workers,
                existing,
            } = run;
            let created =
                create_run(&handle.helpers, run_id, spec, span_id, &workers, existing).await;
            let _ = handle
                .call(move |shell| {
                    shell.extend(|extensions, core, now, out| match created {
                        Ok((worker_for, run_spec)) => {
                            extensions.shuffle_run_created(
                                core,
                                now,
                                &shuffle_id,
                                run_id,
                                worker_for,
                                run_spec,
                                out,
                            );
                        }
                        Err(failure) => {
                            extensions.shuffle_run_failed(
                                core,
                                now,
                                &shuffle_id,
                                run_id,
                                &failure,
                                out,
                            );
                        }
                    });
                })
                .await;
        });
    }

    pub(super) fn shuffle_inputs_done(
        &mut self,
        request: RequestId,
        shuffle_id: Arc<str>,
        run_id: i64,
        workers: Vec<Arc<str>>,
    ) {
        let handle = self.handle.clone();
        tokio::spawn(async move {
            let answers = join_all(workers.into_iter().map(|worker| {
                let fields =
                    map! { "reply" => true, "shuffle_id" => &shuffle_id, "run_id" => run_id };
                let pool = &handle.peers;
                async move {
                    let answer = match pool.call(&worker, "shuffle_inputs_done", fields).await {
                        Ok(Value::Nil) => InputsDone::Done,
                        Ok(other) => InputsDone::Unexpected(text_of(&other)),
                        Err(_) => InputsDone::Unreachable,
                    };
                    (worker, answer)
                }
            }))
            .await;
            let _ = handle
                .call(move |shell| {
                    shell.extend(|extensions, core, now, out| {
                        extensions.shuffle_inputs_done_result(core, now, request, answers, out);
                    });
                })
                .await;
        });
    }
}

fn text_of(reply: &Value) -> String {
    let text = reply
        .as_map()
        .and_then(|reply| reply.get("exception_text"))
        .and_then(Value::as_str);
    text.map_or_else(|| format!("{reply:?}"), str::to_owned)
}

type Created = (Vec<(Value, Arc<str>)>, Pickled);

async fn create_run(
    helpers: &graph_helper::Pool,
    run_id: i64,
    spec: RunSpec,
    span_id: Option<Arc<str>>,
    workers: &[Arc<str>],
    existing: Vec<(Value, Arc<str>)>,
) -> Result<Created, Failure> {
    let spec = match spec {
        RunSpec::Pickle(pickle) => Value::Bin(pickle),
        RunSpec::Buffers(parts) => {
            let buffers = parts.1.iter().cloned().map(Value::Bin).collect::<Value>();
            Value::Array(vec![Value::Bin(parts.0.clone()), buffers])
        }
        RunSpec::None | RunSpec::Call { .. } | RunSpec::Bundle { .. } => {
            return Err(Failure::builtin(
                "RuntimeError",
                "the barrier of this shuffle has no specification",
            ));
        }
    };
    let existing: Map = existing
        .into_iter()
        .map(|(partition, worker)| (partition, Value::from(worker)))
        .collect();
    let fields = map! {
        "spec" => spec,
        "run_id" => run_id,
        "span_id" => span_id,
        "workers" => workers.iter().map(Value::from).collect::<Value>(),
        "existing" => existing,
    };
    let mut answer = graph_helper::request(helpers, "create_run", fields).await?;
    let unusable = || {
        Failure::builtin(
            "RuntimeError",
            "the graph helper gave no usable shuffle run",
        )
    };
    let mut worker_for = Vec::new();
    for pair in answer
        .take("worker_for")
        .and_then(Value::into_array)
        .ok_or_else(unusable)?
    {
        let mut pair = pair.into_array().ok_or_else(unusable)?.into_iter();
        match (pair.next(), pair.next().and_then(Value::into_str)) {
            (Some(partition), Some(worker)) => {
                worker_for.push((partition.detached(), Arc::from(worker.as_str())))
            }
            _ => return Err(unusable()),
        }
    }
    let pickle = answer
        .take("run_spec")
        .and_then(Value::into_bin)
        .ok_or_else(unusable)?;
    let buffers = answer
        .take("buffers")
        .and_then(Value::into_array)
        .unwrap_or_default();
    let buffers = buffers.into_iter().filter_map(Value::into_bin);
    Ok((
        worker_for,
        Pickled::with_buffers(&pickle, buffers).detached(),
    ))
}
