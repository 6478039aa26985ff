//! Requests and stream messages, taken apart and handed to the extension they are for.

use std::sync::Arc;

use hashbrown::HashSet;
use oxidask_wire::{Key, Map, Value};

use super::arguments::{self, Arguments, hashable, hashables, is_true, python_type};
use super::errors::{type_error, value_error};
use super::waits::{Answer, Context, NONE, PENDING, Wait};
use super::{
    Extensions, Record, Then, UnknownTask, published, python_repr, queues, retirement, task_stream,
    topics, variables,
};
use crate::Scheduler;
use crate::balance::{Shrink, adaptive_target, workers_to_close};
use crate::deaths;
use crate::id::{RequestId, StimulusId, WorkerId};
use crate::instruction::{Failure, Instruction, Instructions, Level};

/// Operations of clients' streams that are the extensions'.
pub(super) const CLIENT_STREAM_OPS: [&str; 7] = [
    "variable-future-received-confirm",
    "variable_delete",
    "queue-future-release",
    "queue_release",
    "publish_flush_batched_send",
    "subscribe-topic",
    "unsubscribe-topic",
];

impl Extensions {
    pub(super) fn dispatch(
        &mut self,
        scheduler: &mut Scheduler,
        now: f64,
        request: RequestId,
        arguments: &mut Arguments<'_>,
        out: &mut Instructions,
    ) -> Option<Answer> {
        let answer = match arguments.op {
            "variable_set" | "queue_put" => {
                self.set_or_put(scheduler, now, request, arguments, out)
            }
            "variable_get"
            | "queue_create"
            | "queue_get"
            | "queue_qsize"
            | "event_wait"
            | "event_set"
            | "event_clear"
            | "event_is_set"
            | "multi_lock_acquire"
            | "multi_lock_release"
            | "semaphore_register"
            | "semaphore_acquire"
            | "semaphore_release"
            | "semaphore_refresh_leases"
            | "semaphore_value"
            | "semaphore_close" => self.primitive(scheduler, now, request, arguments, out),
            "publish_put" | "publish_delete" | "publish_get" | "publish_list" => {
                self.publish(scheduler, now, request, arguments, out)
            }
            "log_event"
            | "events"
            | "set_metadata"
            | "get_metadata"
            | "get_task_stream"
            | "get_task_stream_index"
            | "start_task_metadata"
            | "stop_task_metadata"
            | "get_task_status"
            | "get_task_prefix_states"
            | "memory_sampler_start"
            | "memory_sampler_stop" => self.diagnostics(scheduler, now, arguments, out),
            "shuffle_get"
            | "shuffle_get_or_create"
            | "shuffle_barrier"
            | "shuffle_restrict_task" => self.shuffle(scheduler, now, request, arguments, out),
            "adaptive_target" => self.adaptive_target(scheduler, arguments),
            "workers_to_close" => self.suggest_workers(scheduler, arguments),
            "amm_handler" => self.amm_handler(scheduler, now, arguments, out),
            "retire_workers" => self.retire_workers(scheduler, now, request, arguments, out),
            _ => return None,
        };
        Some(answer)
    }

    fn set_or_put(
        &mut self,
        scheduler: &mut Scheduler,
        now: f64,
        request: RequestId,
        arguments: &mut Arguments<'_>,
        out: &mut Instructions,
    ) -> Answer {
        let name = arguments.key("name")?;
        let timeout = arguments.timeout()?;
        let then = if arguments.op == "variable_set" {
            Then::SetVariable { name }
        } else {
            Then::Put { queue: name }
        };
        let record = match arguments.optional_key("key")? {
            None => Record::Data(variables::kept(
                arguments.optional("data").unwrap_or_default(),
            )),
            Some(key) if scheduler.task_id(&key).is_some() => Record::Future(key),
            Some(key) => {
                self.waits
                    .add(request, Wait::Task, timeout.map(|timeout| now + timeout));
                self.unknown_tasks
                    .insert(request, UnknownTask { key, then });
                return PENDING;
            }
        };
        self.resume(scheduler, now, request, then, record, timeout, out)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the fields of a request, taken apart"
    )]
    fn resume(
        &mut self,
        scheduler: &mut Scheduler,
        now: f64,
        request: RequestId,
        then: Then,
        record: Record,
        timeout: Option<f64>,
        out: &mut Instructions,
    ) -> Answer {
        let cx = &mut Context::new(now, &mut self.waits, out);
        match then {
            Then::SetVariable { name } => self.variables.set(scheduler, cx, name, record),
            Then::Put { queue } => self
                .queues
                .put(scheduler, cx, request, queue, record, timeout),
        }
    }

    /// Goes on with requests whose task has become known.
    pub(super) fn resume_known(
        &mut self,
        scheduler: &mut Scheduler,
        now: f64,
        out: &mut Instructions,
    ) {
        let known: Vec<RequestId> = self
            .unknown_tasks
            .iter()
            .filter(|(_, unknown)| scheduler.task_id(&unknown.key).is_some())
            .map(|(request, _)| *request)
            .collect();
        for request in known {
            let Some(unknown) = self.unknown_tasks.shift_remove(&request) else {
                continue;
            };
            let timeout = self.waits.deadline(request).map(|deadline| deadline - now);
            self.waits.remove(request);
            let record = Record::Future(unknown.key);
            let answer = self.resume(scheduler, now, request, unknown.then, record, timeout, out);
            if let Some(result) = answer.transpose() {
                out.push(Instruction::Reply { request, result });
            }
        }
    }

    fn primitive(
        &mut self,
        scheduler: &mut Scheduler,
        now: f64,
        request: RequestId,
        arguments: &mut Arguments<'_>,
        out: &mut Instructions,
    ) -> Answer {
        let cx = &mut Context::new(now, &mut self.waits, out);
        match arguments.op {
            "multi_lock_acquire" => {
                let locks = arguments.keys("locks")?;
                let id = arguments.key("id")?;
                let timeout = arguments.timeout()?;
                let num_locks = arguments.integer("num_locks")?;
                return self
                    .multi_locks
                    .acquire(cx, request, locks, id, num_locks, timeout);
            }
            "multi_lock_release" => {
                let id = arguments.key("id")?;
                return self.multi_locks.release(cx, &id);
            }
            _ => {}
        }
        let name = arguments.key("name")?;
        match arguments.op {
            "variable_get" => {
                let client = arguments.optional("client");
                let client = client.and_then(|client| client.as_str().map(Arc::from));
                let timeout = arguments.timeout()?;
                self.variables
                    .get(scheduler, cx, request, name, client, timeout)
            }
            "queue_create" => {
                let maxsize = arguments.optional_integer("maxsize")?.unwrap_or(0);
                self.queues.create(name, maxsize)
            }
            "queue_get" => {
                let timeout = arguments.timeout()?;
                let batch = match arguments.optional("batch") {
                    None => queues::Batch::No,
                    Some(value) if !is_true(&value) => queues::Batch::No,
                    Some(Value::Bool(_)) => queues::Batch::All,
                    Some(value) => match value.as_i64() {
                        Some(count) => queues::Batch::Count(usize::try_from(count).unwrap_or(0)),
                        None => {
                            return Err(type_error(&format!(
                                "'{}' object cannot be interpreted as an integer",
                                python_type(&value)
                            )));
                        }
                    },
                };
                self.queues
                    .get(scheduler, cx, request, name, batch, timeout)
            }
            "queue_qsize" => self.queues.qsize(&name),
            "event_wait" => {
                let timeout = arguments.timeout()?;
                self.events.wait(cx, request, name, timeout)
            }
            "event_set" => self.events.set(cx, name),
            "event_clear" => self.events.clear(&name),
            "event_is_set" => self.events.is_set(&name),
            "semaphore_register" => {
                let max_leases = arguments.required("max_leases")?;
                let lease_timeout = arguments.optional_number("lease_timeout")?;
                self.semaphores
                    .register(cx, name, &max_leases, lease_timeout)
            }
            "semaphore_acquire" => {
                let timeout = arguments.timeout()?;
                let lease_id = arguments.key("lease_id")?;
                self.semaphores
                    .acquire(cx, request, name, lease_id, timeout)
            }
            "semaphore_release" => {
                let lease_id = arguments.key("lease_id")?;
                self.semaphores.release(cx, &name, &lease_id)
            }
            "semaphore_refresh_leases" => {
                let lease_ids = arguments.keys("lease_ids")?;
                self.semaphores.refresh(cx, name, lease_ids)
            }
            "semaphore_value" => self.semaphores.value(&name),
            "semaphore_close" => self.semaphores.close(cx, &name),
            op => unreachable!("`{op}` is no operation of a primitive"),
        }
    }

    fn publish(
        &mut self,
        scheduler: &mut Scheduler,
        now: f64,
        request: RequestId,
        arguments: &mut Arguments<'_>,
        out: &mut Instructions,
    ) -> Answer {
        if arguments.op == "publish_list" {
            return self.published.list();
        }
        let names = arguments.keys("names")?;
        if arguments.op == "publish_get" {
            return self.published.get(&names);
        }
        let client = arguments.text("client")?;
        let uid = arguments.key("uid")?;
        let action = if arguments.op == "publish_delete" {
            published::Action::Delete { names }
        } else {
            let keys = arguments.required("keys")?.into_array().unwrap_or_default();
            let data = arguments.required("data")?.into_array().unwrap_or_default();
            if keys.len() != names.len() || data.len() != names.len() {
                return Err(value_error("zip() argument 2 is shorter than argument 1"));
            }
            let mut datasets = Vec::with_capacity(names.len());
            for ((name, keys), data) in names.into_iter().zip(keys).zip(data) {
                datasets.push((name, hashables(&keys)?, variables::kept(data)));
            }
            let replace = arguments.truth("override", false);
            published::Action::Put { datasets, replace }
        };
        let cx = &mut Context::new(now, &mut self.waits, out);
        let change = published::Change { client, action };
        self.published.change(scheduler, cx, request, uid, change)
    }

    fn diagnostics(
        &mut self,
        scheduler: &mut Scheduler,
        now: f64,
        arguments: &mut Arguments<'_>,
        out: &mut Instructions,
    ) -> Answer {
        match arguments.op {
            "log_event" => {
                let topics = topics::topic_names(&arguments.required("topic")?)?;
                let mut message = arguments.required("msg")?;
                if topics.iter().any(|topic| &**topic == deaths::TOPIC)
                    && let Some(event) = deaths::report(&message, now)
                {
                    scheduler.apply(now, event, out);
                    scheduler.complete_report(&mut message);
                }
                self.topics.publish(scheduler, now, &topics, &message, out);
                NONE
            }
            "events" => {
                let topic = arguments.optional("topic");
                let topic = topic.as_ref().map(|topic| topic.as_str().unwrap_or(""));
                Ok(Some(self.topics.events(topic)))
            }
            "set_metadata" => {
                let path = arguments.keys("keys")?;
                let value = arguments.optional("value").unwrap_or_default();
                let first = path.first().cloned();
                let answer = self.metadata.set(path, &value)?;
                if let Some(first) = first {
                    scheduler.announce_forgotten(&first, true);
                }
                Ok(answer)
            }
            "get_metadata" => {
                let path = arguments.keys("keys")?;
                let default = arguments.fields.take("default");
                // Clients send `dask.typing.no_default`, a member of an enumeration, for "none".
                let default = default.filter(|default| !matches!(default, Value::Enum(_)));
                self.metadata.get(&path, default)
            }
            "get_task_stream" => self.task_stream.collect(now, arguments),
            "get_task_stream_index" => self.task_stream.index(),
            "start_task_metadata" => self.collectors.start(arguments.key("name")?),
            "stop_task_metadata" => self.collectors.stop(&arguments.key("name")?),
            "memory_sampler_start" => {
                let client = arguments.text("client")?;
                let measure = arguments.text("measure")?;
                let interval = arguments.optional_number("interval")?.unwrap_or(0.5);
                self.memory_samplers
                    .start(scheduler, now, client, &measure, interval)
            }
            "memory_sampler_stop" => self.memory_samplers.stop(&arguments.text("key")?),
            "get_task_status" => {
                let keys = arguments.keys("keys")?;
                Ok(Some(task_stream::task_status(scheduler, &keys)))
            }
            "get_task_prefix_states" => Ok(Some(task_stream::prefix_states(scheduler))),
            op => unreachable!("`{op}` is no diagnostic operation"),
        }
    }

    fn shuffle(
        &mut self,
        scheduler: &mut Scheduler,
        now: f64,
        request: RequestId,
        arguments: &mut Arguments<'_>,
        out: &mut Instructions,
    ) -> Answer {
        let cx = &mut Context::new(now, &mut self.waits, out);
        if arguments.op == "shuffle_get_or_create" {
            let shuffle_id = arguments.text("shuffle_id")?;
            let key = arguments.key("key")?;
            let worker = arguments.text("worker")?;
            return self
                .shuffles
                .get_or_create(scheduler, cx, request, shuffle_id, key, worker);
        }
        let shuffle_id = arguments.text("id")?;
        if arguments.op == "shuffle_get" {
            let worker = arguments.text("worker")?;
            return self.shuffles.get(scheduler, &shuffle_id, worker);
        }
        let run_id = arguments.integer("run_id")?;
        if arguments.op == "shuffle_barrier" {
            let consistent = is_true(&arguments.required("consistent")?);
            return self
                .shuffles
                .barrier(scheduler, cx, request, shuffle_id, run_id, consistent);
        }
        let key = arguments.key("key")?;
        let worker = arguments.text("worker")?;
        self.shuffles
            .restrict_task(scheduler, cx, &shuffle_id, run_id, key, worker)
    }

    fn adaptive_target(&self, scheduler: &Scheduler, arguments: &mut Arguments<'_>) -> Answer {
        let duration = arguments.optional("target_duration");
        let duration = duration
            .map(|value| arguments::seconds(&value))
            .transpose()?;
        let duration = duration.unwrap_or(self.adaptive_target_duration);
        if duration == 0.0 {
            return Err(value_error("target_duration must not be zero"));
        }
        let target = adaptive_target(scheduler, duration, &self.shuffle_participants());
        Ok(Some(Value::Int(target)))
    }

    fn shuffle_participants(&self) -> HashSet<&str> {
        self.shuffles
            .participants()
            .map(|address| &**address)
            .collect()
    }

    fn suggest_workers(&self, scheduler: &Scheduler, arguments: &mut Arguments<'_>) -> Answer {
        let attribute = arguments.optional("attribute");
        let attribute = attribute
            .as_ref()
            .map_or(Some("address"), Value::as_str)
            .unwrap_or("");
        let mut suggested = Vec::new();
        for worker in self.workers_to_close(scheduler, arguments)? {
            let Some(worker) = scheduler.worker(worker) else {
                continue;
            };
            suggested.push(match attribute {
                "address" => Value::from(&worker.address),
                "name" => worker.name.clone(),
                "host" => Value::from(&worker.host),
                "nanny" => Value::from(worker.nanny.clone()),
                "pid" => Value::from(worker.pid),
                "nthreads" => Value::from(worker.nthreads),
                "server_id" => Value::from(&worker.server_id),
                other => {
                    return Err(type_error(&format!(
                        "cannot give the attribute '{other}' of a worker"
                    )));
                }
            });
        }
        Ok(Some(suggested.into()))
    }

    fn workers_to_close(
        &self,
        scheduler: &Scheduler,
        arguments: &mut Arguments<'_>,
    ) -> Result<Vec<WorkerId>, Failure> {
        let shrink = Shrink {
            memory_ratio: arguments.optional_number("memory_ratio")?,
            n: arguments.optional_integer("n")?,
            minimum: arguments.optional_integer("minimum")?,
            target: arguments.optional_integer("target")?,
        };
        let groups = arguments.optional("key");
        let groups = match &groups {
            None => None,
            Some(Value::Map(groups)) => Some(groups),
            Some(_) => return Err(type_error("`key` must have been evaluated for each worker")),
        };
        let group = |worker: &crate::WorkerState| -> Option<Arc<str>> {
            groups?.get(&worker.address)?.as_str().map(Arc::from)
        };
        Ok(workers_to_close(
            scheduler,
            &shrink,
            group,
            &self.shuffle_participants(),
        ))
    }

    fn amm_handler(
        &mut self,
        scheduler: &mut Scheduler,
        now: f64,
        arguments: &mut Arguments<'_>,
        out: &mut Instructions,
    ) -> Answer {
        let method = arguments.text("method")?;
        let cx = &mut Context::new(now, &mut self.waits, out);
        self.memory_manager.handle(scheduler, cx, &method)
    }

    fn retire_workers(
        &mut self,
        scheduler: &mut Scheduler,
        now: f64,
        request: RequestId,
        arguments: &mut Arguments<'_>,
        out: &mut Instructions,
    ) -> Answer {
        let addresses = arguments.optional("workers");
        let names = arguments.optional("names");
        let close = arguments.truth("close_workers", false);
        let remove = arguments.truth("remove", true);
        let stimulus_id = match arguments.optional("stimulus_id") {
            Some(Value::Str(text)) if !text.is_empty() => StimulusId::from(&text),
            _ => StimulusId::from(format!("retire-workers-{now}")),
        };
        if addresses.is_some() && names.is_some() {
            return Err(type_error("names and workers are mutually exclusive"));
        }
        if (addresses.is_some() || names.is_some()) && !arguments.fields.is_empty() {
            let rest: Vec<String> = arguments
                .fields
                .iter()
                .map(|(name, value)| format!("{}: {}", python_repr(name), python_repr(value)))
                .collect();
            return Err(type_error(&format!(
                "Parameters for workers_to_close() are mutually exclusive with names and workers: {{{}}}",
                rest.join(", ")
            )));
        }
        let mut log = |text: String| {
            out.push(Instruction::Log {
                level: Level::Info,
                text,
            });
        };
        let list = |keys: &[Key]| {
            let keys: Vec<_> = keys.iter().map(Key::python_repr).collect();
            keys.join(", ")
        };
        let workers: Vec<WorkerId> = if let Some(names) = names {
            let names = hashables(&names)?;
            log(format!("Retire worker names [{}]", list(&names)));
            // Names that come from a command line have become text.
            let names: HashSet<String> = names.iter().map(Key::python_str).collect();
            let named = scheduler.workers().filter(|(_, worker)| {
                hashable(&worker.name).is_ok_and(|name| names.contains(&name.python_str()))
            });
            named.map(|(worker, _)| worker).collect()
        } else if let Some(addresses) = addresses {
            let addresses = hashables(&addresses)?;
            log(format!(
                "Retire worker addresses (stimulus_id='{stimulus_id}') [{}]",
                list(&addresses)
            ));
            let mut workers: Vec<_> = addresses
                .iter()
                .filter_map(|address| scheduler.worker_id(address.as_str()?))
                .collect();
            workers.sort_unstable();
            workers.dedup();
            workers
        } else {
            self.workers_to_close(scheduler, arguments)?
        };
        if workers.is_empty() {
            return Ok(Some(Map::new().into()));
        }
        let manner = retirement::Manner {
            stimulus_id,
            close,
            remove,
        };
        self.waits.add(request, Wait::Retirement, None);
        let cx = &mut Context::new(now, &mut self.waits, out);
        self.memory_manager
            .retire(scheduler, cx, request, workers, manner);
        PENDING
    }

    pub(super) fn dispatch_stream(
        &mut self,
        scheduler: &mut Scheduler,
        now: f64,
        client: &Arc<str>,
        arguments: &mut Arguments<'_>,
        out: &mut Instructions,
    ) -> Result<(), Failure> {
        let cx = &mut Context::new(now, &mut self.waits, out);
        match arguments.op {
            "variable-future-received-confirm" => {
                let (name, key) = (arguments.key("name")?, arguments.key("key")?);
                let token = arguments.text("token")?;
                self.variables
                    .confirm(scheduler, cx, client, &name, &key, &token);
            }
            "variable_delete" => {
                let name = arguments.key("name")?;
                self.variables.delete(scheduler, cx, &name);
            }
            "queue-future-release" => {
                let (name, key) = (arguments.key("name")?, arguments.key("key")?);
                self.queues
                    .future_release(scheduler, cx, client, &name, &key);
            }
            "queue_release" => {
                let name = arguments.key("name")?;
                self.queues.release(scheduler, cx, &name);
            }
            "publish_flush_batched_send" => {
                let uid = arguments.key("uid")?;
                self.published.flush(scheduler, cx, client, uid);
            }
            "subscribe-topic" | "unsubscribe-topic" => {
                let topic = arguments.text("topic")?;
                if arguments.op == "subscribe-topic" {
                    self.topics.subscribe(&topic, client);
                } else {
                    self.topics.unsubscribe(&topic, client);
                }
            }
            op => unreachable!("`{op}` is no operation of a client's stream"),
        }
        Ok(())
    }
}
