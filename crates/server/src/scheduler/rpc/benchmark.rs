//! `benchmark_hardware`: bandwidths of memory, disk and network, measured by the workers.

use std::sync::Arc;

use futures_util::future::try_join_all;
use oxidask_scheduler::Failure;
use oxidask_wire::{Map, Str, Value, map};

use super::super::args::os_error;
use super::super::shell::ShellHandle;
use super::broadcast::{Broadcast, raised};

/// `Scheduler.benchmark_hardware`: `{memory | disk | network: {size: bytes per second}}`,
/// averaged over the workers, or over pairs of them.
pub(super) async fn benchmark_hardware(shell: &ShellHandle) -> Result<Value, Failure> {
    let disk = everywhere(shell, "benchmark_disk").await?;
    let memory = everywhere(shell, "benchmark_memory").await?;
    let network = between_pairs(shell).await?;
    Ok(Value::Map(map! {
        "disk" => mean(&disk),
        "memory" => mean(&memory),
        "network" => mean(&network),
    }))
}

async fn everywhere(shell: &ShellHandle, op: &'static str) -> Result<Vec<Value>, Failure> {
    let answers = Broadcast::to_all(map! { "op" => op }).send(shell).await?;
    Ok(answers.iter().map(|(_, answer)| answer.clone()).collect())
}

/// Workers of one host tend to register one after another, and would measure their
/// own memory. So the first half of them is paired with the second, where stock
/// shuffles.
async fn between_pairs(shell: &ShellHandle) -> Result<Vec<Value>, Failure> {
    let workers = shell.call(|shell| {
        let workers = shell.core.workers();
        workers
            .map(|(_, worker)| worker.address.clone())
            .collect::<Vec<Arc<str>>>()
    });
    let workers = workers.await?;
    let (near, far) = workers.split_at(workers.len() / 2);
    let answers = near.iter().zip(far).map(|(near, far)| async move {
        let arguments = map! { "address" => far, "reply" => true };
        let answer = shell.peers.call(near, "benchmark_network", arguments).await;
        let answer =
            answer.map_err(|error| os_error(&format!("cannot reach `{near}`: {error}")))?;
        match raised(&answer) {
            None => Ok(answer),
            Some(text) => Err(Failure::builtin("Exception", &text)),
        }
    });
    try_join_all(answers).await
}

/// The mean of each entry over the answers that have it.
fn mean(answers: &[Value]) -> Map {
    let mut sums: Vec<(Str, f64, f64)> = Vec::new();
    for (size, bandwidth) in answers.iter().filter_map(Value::as_map).flat_map(Map::iter) {
        let (Some(size), Some(bandwidth)) = (size.as_str(), bandwidth.as_f64()) else {
            continue;
        };
        match sums.iter_mut().find(|(known, ..)| **known == *size) {
            Some((_, sum, count)) => {
                *sum += bandwidth;
                *count += 1.0;
            }
            None => sums.push((size.into(), bandwidth, 1.0)),
        }
    }
    let mut means = Map::new();
    for (size, sum, count) in sums {
        means.push(size, sum / count);
    }
    means
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_its_own_mean() {
        let answers = [
            Value::Map(map! { "1 kiB" => 1.0, "1 MiB" => 10.0 }),
            Value::Map(map! { "1 kiB" => 3.0 }),
            Value::Nil,
        ];
        let means = mean(&answers);
        assert_eq!(means, map! { "1 kiB" => 2.0, "1 MiB" => 10.0 });
        assert_eq!(mean(&[]), Map::new());
    }
}
