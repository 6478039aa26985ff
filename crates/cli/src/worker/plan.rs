//! What the options of `dask worker` mean, without starting anything.

use std::collections::HashSet;
use std::sync::Arc;

use oxidask_server::config::{Value as Setting, format_bytes, parse_bytes};
use oxidask_wire::Value;

use crate::arguments::WorkerArguments;

/// This machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    pub(super) cpu_count: usize,
    /// Bytes, if known.
    pub(super) memory_limit: Option<u64>,
}

/// What to start.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    pub(super) nthreads: usize,
    /// Bytes of each worker; `None` is no limit.
    pub(super) memory_limit: Option<u64>,
    /// What the user should know.
    pub(super) warning: Option<String>,
    pub(super) resources: Option<Vec<(Arc<str>, f64)>>,
    pub(super) host: Option<String>,
    pub(super) contact_address: Option<String>,
    /// One for each process.
    pub(super) workers: Vec<Worker>,
}

/// One process.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Worker {
    /// Null if it is to be named by its address.
    pub(super) name: Value,
    /// Ports of the worker, the first free one to be taken; none for any.
    pub(super) ports: Vec<u16>,
    /// As `ports`, of the nanny.
    pub(super) nanny_ports: Vec<u16>,
}

/// Makes the plan, or says why there can be none.
pub(super) fn plan(arguments: &WorkerArguments, machine: Machine) -> Result<Plan, String> {
    let has_nanny = !arguments.no_nanny;
    let (count, nthreads) = processes(arguments, machine.cpu_count)?;
    if count > 1 && !has_nanny {
        return Err("You cannot use the --no-nanny argument when n_workers > 1.".to_owned());
    }
    let listen = arguments.listen_address.as_deref();
    let listen = listen.filter(|address| !address.is_empty());
    let contact = arguments.contact_address.as_deref();
    let contact = contact.filter(|address| !address.is_empty());
    if contact.is_some() && listen.is_none() {
        return Err("Must specify --listen-address when --contact-address is given".to_owned());
    }
    if count > 1 && listen.is_some() {
        return Err("You cannot specify --listen-address when n_workers > 1.".to_owned());
    }
    if (arguments.worker_port.is_some() || arguments.host.is_some()) && listen.is_some() {
        return Err(
            "You cannot specify --listen-address when --worker-port or --host is given.".to_owned(),
        );
    }
    let mut host = arguments.host.clone();
    let mut worker_port = arguments.worker_port.clone();
    let mut contact_address = contact.map(str::to_owned);
    if let Some(listen) = listen {
        let (listen_host, port) = host_and_port(listen)?;
        // Without an address for others, a wildcard is none.
        if contact.is_none() && !matches!(&*listen_host, "" | "0.0.0.0" | "[::]") {
            contact_address = Some(listen.to_owned());
        }
        host = Some(listen_host).filter(|host| !host.is_empty());
        worker_port = Some(port.to_string());
    }
    if let Some(contact) = contact {
        host_and_port(contact)?;
    }
    let ports = apportion_ports(
        worker_port.as_deref(),
        arguments.nanny_port.as_deref(),
        count,
        has_nanny,
    )?;
    let nthreads = match nthreads {
        0 => (machine.cpu_count / count).max(1),
        nthreads => nthreads,
    };
    let (memory_limit, warning) = memory_limit(&arguments.memory_limit, nthreads, machine)?;
    let resources = match arguments.resources.as_deref() {
        None | Some("") => None,
        Some(text) => Some(resources(text)?),
    };
    let workers = ports.into_iter().enumerate();
    let workers = workers.map(|(number, (ports, nanny_ports))| Worker {
        name: name(arguments.name.as_deref(), count, number),
        ports,
        nanny_ports,
    });
    Ok(Plan {
        nthreads,
        memory_limit,
        warning,
        resources,
        host,
        contact_address,
        workers: workers.collect(),
    })
}

/// Processes and threads of each; no threads if they are not chosen.
fn processes(arguments: &WorkerArguments, cpu_count: usize) -> Result<(usize, usize), String> {
    let count = match arguments.nworkers.as_deref() {
        None => 1,
        Some("auto") => return Ok(processes_and_threads(cpu_count)),
        Some(text) => {
            let number: i64 = text
                .trim()
                .parse()
                .map_err(|_| format!("--nworkers must be an integer or 'auto', not '{text}'."))?;
            if number < 0 {
                cpu_count as i64 + 1 + number
            } else {
                number
            }
        }
    };
    let count = usize::try_from(count).unwrap_or(0);
    if count == 0 {
        return Err("Must specify --nworkers so that there's at least one process.".to_owned());
    }
    Ok((count, arguments.nthreads))
}

/// Same as `distributed.deploy.utils.nprocesses_nthreads`.
fn processes_and_threads(cpu_count: usize) -> (usize, usize) {
    let processes = if cpu_count <= 4 {
        cpu_count
    } else {
        (1..=cpu_count)
            .filter(|factor| cpu_count.is_multiple_of(*factor))
            .find(|factor| factor * factor >= cpu_count)
            .unwrap_or(cpu_count)
    };
    (processes, cpu_count / processes.max(1))
}

/// A number where the text is one, as in `dask worker`.
fn name(given: Option<&str>, count: usize, number: usize) -> Value {
    match given {
        None => Value::Nil,
        Some("") => "".into(),
        Some(text) if count > 1 => {
            let text = integer(text).map_or_else(|| text.to_owned(), |number| number.to_string());
            format!("{text}-{number}").into()
        }
        Some(text) => integer(text).map_or_else(|| text.into(), Value::Int),
    }
}

/// Python's `int(text)`.
fn integer(text: &str) -> Option<i64> {
    text.trim().replace('_', "").parse().ok()
}

/// Same as `parse_memory_limit` in distributed, with its warning.
fn memory_limit(
    text: &str,
    nthreads: usize,
    machine: Machine,
) -> Result<(Option<u64>, Option<String>), String> {
    let total = machine.memory_limit;
    if text == "auto" {
        let fraction = (nthreads as f64 / machine.cpu_count as f64).min(1.0);
        let limit = total.map(|total| (total as f64 * fraction) as u64);
        return Ok((limit.filter(|&limit| limit > 0), None));
    }
    let invalid = || format!("Invalid memory limit '{text}'.");
    let limit = match text.trim().parse::<f64>() {
        Ok(number) if !number.is_finite() || number < 0.0 => return Err(invalid()),
        Ok(number) if number <= 1.0 => {
            let total = total.ok_or_else(|| {
                format!("The memory limit '{text}' is a fraction of this machine's memory, which the system does not tell.")
            })?;
            (total as f64 * number) as u64
        }
        Ok(number) => number as u64,
        Err(_) => {
            let nbytes = parse_bytes(&Setting::Str(text.to_owned())).map_err(|_| invalid())?;
            u64::try_from(nbytes).map_err(|_| invalid())?
        }
    };
    match total {
        _ if limit == 0 => Ok((None, None)),
        Some(total) if total < limit => {
            let warning = format!(
                "Ignoring provided memory limit {text} due to system memory limit of {}",
                format_bytes(total)
            );
            Ok((Some(total), Some(warning)))
        }
        Some(_) | None => Ok((Some(limit), None)),
    }
}

/// Amounts such as `GPU=2 MEM=10e9`; commas separate them as well.
fn resources(text: &str) -> Result<Vec<(Arc<str>, f64)>, String> {
    let pair = |pair: &str| {
        let (name, amount) = pair.split_once('=')?;
        Some((Arc::from(name), amount.trim().parse().ok()?))
    };
    text.replace(',', " ")
        .split_whitespace()
        .map(|text| {
            pair(text).ok_or_else(|| {
                format!("Invalid resource '{text}': expected a name and an amount like GPU=2.")
            })
        })
        .collect()
}

/// Host and port of an address that must have both; the host in brackets if it is an
/// IPv6 address. Same as `get_address_host_port(address, strict=True)` in distributed.
fn host_and_port(address: &str) -> Result<(String, u16), String> {
    let location = address.split_once("://").map_or(address, |(_, rest)| rest);
    let (host, port) = match location.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        Some(_) | None => return Err(format!("missing port number in address '{address}'")),
    };
    let is_bracketed = host.starts_with('[') && host.ends_with(']');
    if host.contains(':') && !is_bracketed {
        return Err(format!(
            "Host address with IPv6 must be bracketed like '[::1]'; got {host}"
        ));
    }
    let port = port
        .parse()
        .map_err(|_| format!("invalid port number '{port}' in address '{address}'"))?;
    Ok((host.to_owned(), port))
}

/// Ports of a worker and of its nanny.
type Ports = (Vec<u16>, Vec<u16>);

/// Deals the ports of two ranges out, one of each at a time and none twice. Same as
/// `_apportion_ports` in distributed.
fn apportion_ports(
    worker_port: Option<&str>,
    nanny_port: Option<&str>,
    count: usize,
    has_nanny: bool,
) -> Result<Vec<Ports>, String> {
    let mut worker_ports = parse_ports(worker_port, count)?.into_iter();
    let mut nanny_ports = parse_ports(nanny_port, count)?.into_iter();
    let mut seen = HashSet::new();
    let mut next = |ports: &mut std::vec::IntoIter<Option<u16>>| {
        ports.find(|port| port.is_none_or(|port| seen.insert(port)))
    };
    let mut hands = vec![(Vec::new(), Vec::new()); count];
    for number in (0..count).cycle() {
        let (worker, nanny) = (next(&mut worker_ports), next(&mut nanny_ports));
        if worker.is_none() && nanny.is_none() {
            break;
        }
        hands[number].0.extend(worker);
        hands[number].1.extend(nanny);
    }
    if hands
        .iter()
        .any(|(workers, nannies)| workers.is_empty() || nannies.is_empty())
    {
        let shown = |port: Option<&str>| port.unwrap_or("None").to_owned();
        let mut ranges = format!("--worker_port {}", shown(worker_port));
        if has_nanny {
            ranges.push_str(&format!(" --nanny_port {}", shown(nanny_port)));
        }
        return Err(format!(
            "Not enough ports in range {ranges} for {count} workers"
        ));
    }
    let known = |ports: Vec<Option<u16>>| {
        let mut ports: Vec<u16> = ports.into_iter().flatten().collect();
        ports.sort_unstable();
        ports
    };
    Ok(hands
        .into_iter()
        .map(|(workers, nannies)| (known(workers), known(nannies)))
        .collect())
}

/// Ports of `8000`, `8000:8100`, or the list `8000,8002` that a nanny gives its worker;
/// for no port and for 0, `count` times any.
fn parse_ports(text: Option<&str>, count: usize) -> Result<Vec<Option<u16>>, String> {
    let Some(text) = text else {
        return Ok(vec![None; count]);
    };
    let number = |part: &str| {
        part.trim()
            .parse::<u16>()
            .map_err(|_| format!("Invalid port '{part}': expected a number up to 65535."))
    };
    let ports = match text.split_once(':') {
        Some((first, last)) => {
            let (first, last) = (number(first)?, number(last)?);
            if last <= first {
                return Err(format!(
                    "When specifying a range of ports like port_start:port_stop, port_stop must be \
                     greater than port_start, but got port_start={first} and port_stop={last}"
                ));
            }
            (first..=last).collect()
        }
        None => text.split(',').map(number).collect::<Result<Vec<_>, _>>()?,
    };
    if ports == [0] {
        return Ok(vec![None; count]);
    }
    Ok(ports.into_iter().map(Some).collect())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::arguments::{Command, Oxidask};

    const MACHINE: Machine = Machine {
        cpu_count: 8,
        memory_limit: Some(16_000),
    };

    fn planned(line: &str) -> Result<Plan, String> {
        let line = format!("oxidask worker tcp://a:1 {line}");
        let parsed = Oxidask::try_parse_from(line.split_whitespace());
        match parsed.unwrap().command {
            Command::Worker(arguments) => plan(&arguments, MACHINE),
            Command::Scheduler(_) => unreachable!("the line is of a worker"),
        }
    }

    fn refused(line: &str) -> String {
        planned(line).unwrap_err()
    }

    #[test]
    fn one_worker() {
        let worker = Worker {
            name: Value::Nil,
            ports: Vec::new(),
            nanny_ports: Vec::new(),
        };
        let expected = Plan {
            nthreads: 8,
            memory_limit: Some(16_000),
            warning: None,
            resources: None,
            host: None,
            contact_address: None,
            workers: vec![worker],
        };
        assert_eq!(planned(""), Ok(expected));
    }

    #[test]
    fn processes_and_their_threads() {
        let shape = |line: &str| {
            let plan = planned(line).unwrap();
            (plan.workers.len(), plan.nthreads)
        };
        assert_eq!(shape("--nworkers 2"), (2, 4));
        assert_eq!(shape("--nworkers 3 --nthreads 1"), (3, 1));
        assert_eq!(shape("--nworkers -1"), (8, 1));
        assert_eq!(shape("--nworkers=-5 --nthreads 7"), (4, 7));
        assert_eq!(shape("--nworkers auto --nthreads 7"), (4, 2));
        assert_eq!(shape("--nworkers 20"), (20, 1));
        let shapes = [(1, 1), (2, 1), (4, 1), (6, 2), (7, 1), (32, 4), (36, 6)];
        for (cpu_count, nthreads) in shapes {
            assert_eq!(processes_and_threads(cpu_count).1, nthreads, "{cpu_count}");
        }
        for line in ["--nworkers 0", "--nworkers -9", "--nworkers -100"] {
            assert!(refused(line).contains("at least one process"), "{line}");
        }
        assert!(refused("--nworkers x").contains("'x'"));
        assert!(refused("--nworkers 2 --no-nanny").contains("--no-nanny argument"));
    }

    #[test]
    fn names() {
        let names = |line: &str| {
            let workers = planned(line).unwrap().workers.into_iter();
            workers.map(|worker| worker.name).collect::<Vec<_>>()
        };
        assert_eq!(names("--name a"), ["a".into()]);
        assert_eq!(names("--name 5"), [Value::Int(5)]);
        assert_eq!(names("--name -x"), ["-x".into()]);
        assert_eq!(names("--name 5 --nworkers 2"), ["5-0".into(), "5-1".into()]);
        assert_eq!(names("--nworkers 2"), [Value::Nil, Value::Nil]);
    }

    #[test]
    fn memory() {
        let limit = |text: &str| memory_limit(text, 2, MACHINE);
        let quiet = |text: &str| {
            let (limit, warning) = limit(text).unwrap();
            assert_eq!(warning, None, "{text}");
            limit
        };
        assert_eq!(quiet("auto"), Some(4_000));
        assert_eq!(quiet("0"), None);
        assert_eq!(quiet("0.0"), None);
        assert_eq!(quiet("0.25"), Some(4_000));
        assert_eq!(quiet("1"), Some(16_000));
        assert_eq!(quiet("5e3"), Some(5_000));
        assert_eq!(quiet("5 kB"), Some(5_000));
        let (capped, warning) = limit("5GB").unwrap();
        assert_eq!(capped, Some(16_000));
        let expected = "Ignoring provided memory limit 5GB due to system memory limit of 15.62 kiB";
        assert_eq!(warning.as_deref(), Some(expected));
        for text in ["-1", "nan", "inf", "much"] {
            assert!(limit(text).unwrap_err().contains(text), "{text}");
        }
        let unknown = Machine {
            memory_limit: None,
            ..MACHINE
        };
        assert_eq!(memory_limit("auto", 2, unknown), Ok((None, None)));
        assert_eq!(
            memory_limit("5GB", 2, unknown),
            Ok((Some(5_000_000_000), None))
        );
        assert!(memory_limit("0.5", 2, unknown).is_err());
    }

    #[test]
    fn amounts() {
        let read = |text: &str| {
            let resources = resources(text)?.into_iter();
            let pairs: Vec<_> = resources
                .map(|(name, amount)| (name.to_string(), amount))
                .collect();
            Ok::<_, String>(pairs)
        };
        let expected = vec![("GPU".to_owned(), 2.0), ("MEM".to_owned(), 10e9)];
        assert_eq!(read("GPU=2 MEM=10e9"), Ok(expected.clone()));
        assert_eq!(read("GPU=2,MEM=10e9"), Ok(expected));
        for text in ["GPU", "GPU=two", "GPU=1=2"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses() {
        let place = |line: &str| {
            let plan = planned(line).unwrap();
            let ports = plan.workers[0].ports.clone();
            (plan.host, ports, plan.contact_address)
        };
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(
            place("--listen-address tcp://10.0.0.1:9000"),
            (text("10.0.0.1"), vec![9000], text("tcp://10.0.0.1:9000"))
        );
        assert_eq!(
            place("--listen-address tcp://:9000"),
            (None, vec![9000], None)
        );
        assert_eq!(
            place("--listen-address tcp://[::1]:9000 --contact-address tcp://b:1"),
            (text("[::1]"), vec![9000], text("tcp://b:1"))
        );
        assert_eq!(
            place("--host b --worker-port 7"),
            (text("b"), vec![7], None)
        );
        let refusals = [
            (
                "--contact-address tcp://a:1",
                "Must specify --listen-address",
            ),
            ("--listen-address tcp://a", "missing port number"),
            ("--listen-address tcp://[::1]", "missing port number"),
            ("--listen-address tcp://a:x", "invalid port number"),
            ("--listen-address tcp://::1:5", "must be bracketed"),
            (
                "--listen-address a:1 --contact-address b",
                "missing port number",
            ),
            ("--listen-address a:1 --nworkers 2", "when n_workers > 1"),
            (
                "--listen-address a:1 --worker-port 5",
                "--worker-port or --host",
            ),
            ("--listen-address a:1 --host b", "--worker-port or --host"),
        ];
        for (line, expected) in refusals {
            let error = refused(line);
            assert!(error.contains(expected), "{line}: {error}");
        }
    }

    #[test]
    fn ports() {
        let deal = |worker: Option<&str>, nanny: Option<&str>, count| {
            apportion_ports(worker, nanny, count, true)
        };
        let any: Ports = (Vec::new(), Vec::new());
        assert_eq!(deal(None, None, 2), Ok(vec![any.clone(), any.clone()]));
        assert_eq!(deal(Some("0"), Some("0"), 1), Ok(vec![any]));
        assert_eq!(
            deal(Some("3000:3003"), None, 2),
            Ok(vec![(vec![3000, 3002], vec![]), (vec![3001, 3003], vec![])])
        );
        // One range for both is shared.
        assert_eq!(
            deal(Some("3000:3003"), Some("3000:3003"), 2),
            Ok(vec![(vec![3000], vec![3001]), (vec![3002], vec![3003])])
        );
        assert_eq!(
            deal(Some("3000,3002"), None, 1),
            Ok(vec![(vec![3000, 3002], vec![])])
        );
        let error = deal(Some("3000"), None, 2).unwrap_err();
        assert_eq!(
            error,
            "Not enough ports in range --worker_port 3000 --nanny_port None for 2 workers"
        );
        for text in ["x", "70000", "3000:2999", "1:2:3", ""] {
            assert!(deal(Some(text), None, 1).is_err(), "{text}");
        }
    }
}
