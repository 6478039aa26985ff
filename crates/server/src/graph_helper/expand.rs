//! From `update-graph` to a [`Graph`].

use std::sync::Arc;

use bytes::Bytes;
use oxidask_scheduler::order::{Order, OrderInput, order};
use oxidask_scheduler::{Actors, ClientId, Graph, Number, RunSpec, StimulusId, TaskFlags};
use oxidask_wire::msgpack::Reader;
use oxidask_wire::{Key, Map, Pickled, Serialized, Value, map};
use tracing::debug;

use super::{Error, Helper, Pool};

/// Graphs above this many tasks are decoded and ordered on a thread of their
/// own; below it the hand-over costs more than the work (about 3 µs a task).
const INLINE_TASKS_MAX: usize = 300;

/// A helper that held a graph of this size is asked for its memory afterwards.
const HEAVY_TASKS_MIN: i64 = 20_000;

/// `update-graph`, as it came from the client.
#[derive(Debug)]
pub struct Update {
    /// The submitting client.
    pub client: ClientId,
    /// `expr_ser`.
    pub expr: Serialized,
    /// Requested keys.
    pub keys: Vec<Key>,
    /// `internal_priority`, unless null or empty.
    pub priorities: Option<Vec<(Key, i64)>>,
    /// `submitting_task`.
    pub submitting_task: Option<Key>,
    /// `fifo_timeout` in seconds.
    pub fifo_timeout: f64,
    /// `actors`.
    pub actors: Actors,
    /// `code`, opaque.
    pub code: Value,
    /// `span_metadata`, opaque.
    pub span_metadata: Value,
    /// `annotations`: a pickled map.
    pub annotations: Value,
    /// `user_priority`.
    pub user_priority: Number,
    /// `stimulus_id`, made up if the client sent none.
    pub stimulus_id: StimulusId,
    /// When it arrived, in seconds since the epoch.
    pub start: f64,
}

/// Has a helper unpickle and materialise the graph, orders it and has its tasks
/// packed.
///
/// # Errors
///
/// See [`Error`]; the exception of the user's own code arrives as it was raised.
pub async fn expand(pool: &Pool, update: Update) -> Result<Graph, Error> {
    let mut helper = pool.lease().await?;
    let request = map! {
        "expr" => node(&update.expr.header, &update.expr.frames),
        "keys" => update.keys.iter().map(Value::from).collect::<Vec<_>>(),
        "annotations" => pickled(&update.annotations),
    };
    let answer = match helper.request("expand", request).await {
        Ok(answer) => answer,
        Err(error) => {
            // One that raised has done its work and serves on.
            if matches!(error, Error::Raised(_)) {
                helper.give_back(false).await;
            }
            return Err(error);
        }
    };
    let n_tasks = answer.get("n").and_then(Value::as_i64).unwrap_or(0);
    let seconds = answer.get("durations");
    debug!(target: "distributed.scheduler", n_tasks, ?seconds, "graph expanded");
    let heavy = n_tasks > HEAVY_TASKS_MIN;
    if let Some(modules) = answer.get("imported") {
        pool.preimport(modules.clone());
    }
    let prepared = if usize::try_from(n_tasks).is_ok_and(|n| n > INLINE_TASKS_MAX) {
        let prepared = move || {
            let prepared = prepare(answer, update);
            if heavy {
                // The answer itself, its values and the columns before they were converted.
                crate::memory::release();
            }
            prepared
        };
        tokio::task::spawn_blocking(prepared)
            .await
            .map_err(|_| Error::ShutDown)??
    } else {
        prepare(answer, update)?
    };
    let Prepared {
        mut graph,
        ordered,
        packed,
    } = prepared;
    if packed {
        pack(&mut helper, &mut graph, ordered).await?;
    }
    helper.give_back(heavy).await;
    Ok(graph)
}

struct Prepared {
    graph: Graph,
    /// Task indices in order of priority; only made when there is something to pack.
    ordered: Vec<u32>,
    packed: bool,
}

fn node(header: &Bytes, frames: &[Bytes]) -> Value {
    let frames = frames
        .iter()
        .map(|frame| Value::Bin(frame.clone()))
        .collect::<Vec<_>>();
    Value::Map(map! { "header" => header.clone(), "frames" => frames })
}

fn pickled(value: &Value) -> Value {
    match value.as_pickled() {
        Some(Pickled { header, frames }) => node(header, frames),
        None => value.clone(),
    }
}

/// A `run_spec` of the helper: a pickle, or a pickle and its buffers.
pub(super) fn pickle_spec(value: &Value) -> Option<RunSpec> {
    // Copied, because a slice would keep the whole answer alive.
    let copied = |part: &Value| part.as_bin().map(|bytes| Bytes::copy_from_slice(bytes));
    if let Some(pickle) = copied(value) {
        return Some(RunSpec::Pickle(pickle));
    }
    let mut parts = value.as_array()?.iter();
    let pickle = copied(parts.next()?)?;
    let buffers = parts.next()?.as_array()?;
    let buffers = buffers.iter().map(copied).collect::<Option<Vec<_>>>()?;
    Some(RunSpec::Buffers(Arc::new((pickle, buffers))))
}

fn column(answer: &Map, field: &'static str) -> Result<Vec<u32>, Error> {
    let bytes = answer
        .get(field)
        .and_then(Value::as_bin)
        .ok_or(Error::Answer {
            op: "expand",
            field,
        })?;
    if bytes.len() % 4 != 0 {
        return Err(Error::Answer {
            op: "expand",
            field,
        });
    }
    Ok(bytes
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
        .collect())
}

const fn malformed(field: &'static str) -> Error {
    Error::Answer {
        op: "expand",
        field,
    }
}

/// Decodes the structure, checks it and gives every task its order.
fn prepare(mut answer: Map, update: Update) -> Result<Prepared, Error> {
    let n = answer
        .get("n")
        .and_then(Value::as_i64)
        .and_then(|n| usize::try_from(n).ok())
        .ok_or(malformed("n"))?;
    let keys = answer
        .take("keys")
        .and_then(Value::into_array)
        .ok_or(malformed("keys"))?
        .iter()
        .map(|key| Key::from_value(key).map_err(|_| malformed("keys")))
        .collect::<Result<Vec<_>, _>>()?;
    let offsets = column(&answer, "offsets")?;
    let dependencies = column(&answer, "dependencies")?;
    let ascending = offsets.windows(2).all(|pair| pair[0] <= pair[1]);
    if keys.len() < n
        || offsets.len() != n + 1
        || !ascending
        || offsets[n] as usize != dependencies.len()
    {
        return Err(malformed("offsets"));
    }
    if dependencies
        .iter()
        .any(|dependency| *dependency as usize >= keys.len())
    {
        return Err(malformed("dependencies"));
    }
    let flags = answer
        .get("flags")
        .and_then(Value::as_bin)
        .filter(|flags| flags.len() == n)
        .ok_or(malformed("flags"))?
        .iter()
        .map(|bits| TaskFlags(*bits))
        .collect::<Vec<_>>();
    let (specs, packed) = specs(&mut answer, n)?;
    let barriers = barriers(&answer, n)?;
    let (annotations, global_annotations) = annotations(&mut answer, n)?;

    let order = match &update.priorities {
        Some(priorities) => given_order(&keys[..n], priorities),
        None => computed_order(&keys[..n], &offsets, &dependencies, &flags)?,
    };
    let ordered = if packed { by_order(&order) } else { Vec::new() };
    let graph = Graph {
        client: update.client,
        requested: update.keys,
        keys,
        dependency_offsets: offsets,
        dependencies,
        flags,
        specs,
        bundles: Vec::new(),
        order,
        annotations,
        global_annotations,
        actors: update.actors,
        user_priority: update.user_priority,
        fifo_timeout: update.fifo_timeout,
        submitting_task: update.submitting_task,
        barriers,
        code: update.code,
        span_metadata: update.span_metadata,
        stimulus_id: update.stimulus_id,
        start: update.start,
    };
    Ok(Prepared {
        graph,
        ordered,
        packed,
    })
}

/// One [`RunSpec`] per task; those to be packed are [`RunSpec::None`] for now.
fn specs(answer: &mut Map, n: usize) -> Result<(Vec<RunSpec>, bool), Error> {
    let kinds = answer
        .get("specs")
        .and_then(Value::as_bin)
        .filter(|kinds| kinds.len() == n)
        .cloned()
        .ok_or(malformed("specs"))?;
    let functions = answer
        .get("functions")
        .and_then(Value::as_array)
        .unwrap_or_default()
        .iter()
        .map(|function| {
            function
                .as_bin()
                .map(|function| Bytes::copy_from_slice(function))
        })
        .collect::<Option<Vec<_>>>()
        .ok_or(malformed("functions"))?;
    let call_offsets = if kinds.contains(&1) {
        column(answer, "call_offsets")?
    } else {
        Vec::new()
    };
    let mut calls = calls(answer, &call_offsets)?.into_iter();
    let mut pickles = answer
        .take("pickles")
        .and_then(Value::into_array)
        .unwrap_or_default()
        .into_iter();
    let mut packed = false;
    let mut specs = Vec::with_capacity(n);
    for kind in kinds.iter() {
        specs.push(match kind {
            0 => pickles
                .next()
                .and_then(|spec| pickle_spec(&spec))
                .ok_or(malformed("pickles"))?,
            1 => {
                let (function, arguments) = calls.next().ok_or(malformed("calls"))?;
                let function = functions.get(function).ok_or(malformed("calls"))?.clone();
                RunSpec::Call {
                    function,
                    arguments,
                }
            }
            2 => {
                packed = true;
                RunSpec::None
            }
            _ => return Err(malformed("specs")),
        });
    }
    Ok((specs, packed))
}

/// `[function index, args, ...]` of every call becomes the index and `[args, ...]`.
fn calls(answer: &Map, offsets: &[u32]) -> Result<Vec<(usize, Bytes)>, Error> {
    let Some(encoded) = answer.get("calls").and_then(Value::as_bin) else {
        return Ok(Vec::new());
    };
    // Copied once as a whole: all arguments are slices of it, and the rest of
    // the answer can go.
    let mut calls = encoded.to_vec();
    let mut parts = Vec::with_capacity(offsets.len());
    for bounds in offsets.windows(2) {
        let (start, end) = (bounds[0] as usize, bounds[1] as usize);
        let call = encoded.get(start..end).ok_or(malformed("call_offsets"))?;
        let mut reader = Reader::of_slice(call, "calls");
        let length = reader.array_len().map_err(|_| malformed("calls"))?;
        let function = reader
            .int()
            .ok()
            .and_then(|index| usize::try_from(index).ok())
            .ok_or(malformed("calls"))?;
        let length = u8::try_from(length)
            .ok()
            .filter(|length| (2..=4).contains(length))
            .ok_or(malformed("calls"))?;
        // The new array's one-byte header takes the place of the index' last byte.
        let arguments = start + reader.position() - 1;
        calls[arguments] = 0x90 | (length - 1);
        parts.push((function, arguments, end));
    }
    let calls = Bytes::from(calls);
    Ok(parts
        .into_iter()
        .map(|(function, start, end)| (function, calls.slice(start..end)))
        .collect())
}

fn barriers(answer: &Map, n: usize) -> Result<Vec<(u32, Arc<str>)>, Error> {
    let mut barriers = Vec::new();
    for pair in answer
        .get("barriers")
        .and_then(Value::as_array)
        .unwrap_or_default()
    {
        let pair = pair.as_array().unwrap_or_default();
        let index = pair
            .first()
            .and_then(Value::as_i64)
            .and_then(|index| u32::try_from(index).ok());
        let id = pair.get(1).and_then(Value::as_str);
        match (index, id) {
            (Some(index), Some(id)) if (index as usize) < n => {
                barriers.push((index, Arc::from(id)))
            }
            _ => return Err(malformed("barriers")),
        }
    }
    Ok(barriers)
}

type Annotations = (Vec<(u32, Map)>, Option<Arc<Map>>);

/// Merges annotations: global callables first, then the graph's own, which win.
fn annotations(answer: &mut Map, n: usize) -> Result<Annotations, Error> {
    let mut per_task: std::collections::BTreeMap<u32, Map> = std::collections::BTreeMap::new();
    for field in ["evaluated_annotations", "annotations"] {
        let Some(Value::Map(by_name)) = answer.take(field) else {
            continue;
        };
        for (name, values) in by_name.0 {
            for pair in values.into_array().unwrap_or_default() {
                let mut pair = pair.into_array().unwrap_or_default().into_iter();
                let index = pair
                    .next()
                    .as_ref()
                    .and_then(Value::as_i64)
                    .and_then(|index| u32::try_from(index).ok());
                match (index, pair.next()) {
                    (Some(index), Some(value)) if (index as usize) < n => {
                        let of_task = per_task.entry(index).or_default();
                        if let Some(name) = name.as_str() {
                            of_task.take(name);
                        }
                        of_task.insert(name.clone(), value);
                    }
                    _ => return Err(malformed("annotations")),
                }
            }
        }
    }
    let global = answer
        .take("global_annotations")
        .and_then(Value::into_map)
        .filter(|map| !map.0.is_empty());
    Ok((per_task.into_iter().collect(), global.map(Arc::new)))
}

/// `internal_priority`: what the client numbered, in the graph's own order for the rest.
fn given_order(keys: &[Key], priorities: &[(Key, i64)]) -> Vec<i64> {
    let same_order = keys.len() == priorities.len()
        && keys
            .iter()
            .zip(priorities)
            .all(|(key, (numbered, _))| key == numbered);
    if same_order {
        return priorities.iter().map(|(_, priority)| *priority).collect();
    }
    let by_key: std::collections::HashMap<&Key, i64> = priorities
        .iter()
        .map(|(key, priority)| (key, *priority))
        .collect();
    keys.iter()
        .zip(0i64..)
        .map(|(key, position)| by_key.get(key).copied().unwrap_or(position))
        .collect()
}

fn computed_order(
    keys: &[Key],
    offsets: &[u32],
    dependencies: &[u32],
    flags: &[TaskFlags],
) -> Result<Vec<i64>, Error> {
    let n = keys.len();
    if n == 1 {
        return Ok(vec![0]);
    }
    // Only dependencies inside the graph count.
    let mut inner_offsets = Vec::with_capacity(n + 1);
    let mut inner = Vec::with_capacity(dependencies.len());
    inner_offsets.push(0);
    for bounds in offsets.windows(2) {
        let of_task = &dependencies[bounds[0] as usize..bounds[1] as usize];
        inner.extend(
            of_task
                .iter()
                .copied()
                .filter(|dependency| (*dependency as usize) < n),
        );
        inner_offsets.push(u32::try_from(inner.len()).map_err(|_| malformed("dependencies"))?);
    }
    let is_task = flags
        .iter()
        .map(|flags| flags.0 & TaskFlags::DATA == 0)
        .collect::<Vec<_>>();
    let names = keys.iter().map(Key::python_str).collect::<Vec<_>>();
    let mut by_name = (0..n).collect::<Vec<_>>();
    by_name.sort_unstable_by(|a, b| names[*a].cmp(&names[*b]));
    let mut name_rank = vec![0u32; n];
    for (rank, index) in (0u32..).zip(by_name) {
        name_rank[index] = rank;
    }
    let input = OrderInput {
        dependency_offsets: &inner_offsets,
        dependencies: &inner,
        is_task: &is_task,
        name_rank: &name_rank,
    };
    match order(&input) {
        Ok(Order { priority, .. }) => Ok(priority.into_iter().map(i64::from).collect()),
        Err(cycle) => {
            let chain = cycle
                .chain
                .iter()
                .map(|index| names[*index as usize].as_str())
                .collect::<Vec<_>>();
            Err(Error::Cycle(format!(
                "Cycle detected between the following keys:\n  -> {}",
                chain.join("\n  -> ")
            )))
        }
    }
}

fn by_order(order: &[i64]) -> Vec<u32> {
    let mut ordered = (0u32..).take(order.len()).collect::<Vec<_>>();
    ordered.sort_unstable_by_key(|index| order[*index as usize]);
    ordered
}

/// Second half of the conversation: the helper packs the remaining tasks into
/// bundles of neighbours in the order in which they are likely to be assigned.
async fn pack(helper: &mut Helper, graph: &mut Graph, ordered: Vec<u32>) -> Result<(), Error> {
    const fn malformed(field: &'static str) -> Error {
        Error::Answer { op: "pack", field }
    }
    let mut order = Vec::with_capacity(ordered.len() * 4);
    for index in &ordered {
        order.extend_from_slice(&index.to_le_bytes());
    }
    let mut answer = helper
        .request("pack", map! { "order" => Bytes::from(order) })
        .await?;
    let cuts = column(&answer, "cuts").map_err(|_| malformed("cuts"))?;
    let bundles = answer
        .take("bundles")
        .and_then(Value::into_array)
        .ok_or(malformed("bundles"))?
        .iter()
        .map(|bundle| bundle.as_bin().map(|bundle| Bytes::copy_from_slice(bundle)))
        .collect::<Option<Vec<_>>>()
        .ok_or(malformed("bundles"))?;
    if cuts.len() != bundles.len() + 1 {
        return Err(malformed("cuts"));
    }
    let mut packed = 0;
    for (bundle, bounds) in (0u32..).zip(cuts.windows(2)) {
        let positions = ordered
            .get(bounds[0] as usize..bounds[1] as usize)
            .ok_or(malformed("cuts"))?;
        let mut index = 0;
        for task in positions {
            let spec = &mut graph.specs[*task as usize];
            if *spec == RunSpec::None {
                *spec = RunSpec::Bundle { bundle, index };
                index += 1;
                packed += 1;
            }
        }
    }
    // A task left without a recipe would look like scattered data.
    if packed == 0 || graph.specs.contains(&RunSpec::None) {
        return Err(malformed("cuts"));
    }
    graph.bundles = bundles;
    Ok(())
}
