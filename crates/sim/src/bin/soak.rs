//! Plays plans of one seed after the other, and shows what a failure needs.
//!
//! ```text
//! oxidask-soak [--seconds N] [--first SEED] [--threads N] [--failures N]
//!                                                             fresh seeds for a time
//! oxidask-soak --seed SEED [--steps 0,3,…] [--without 2,…]    one plan, or a part of it
//! oxidask-soak --shrink SEED                                  the least that still fails
//! oxidask-soak --seed SEED --machines N                       one plan of so many workers
//! ```

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "the shell of the simulator: it has a clock, threads and a terminal"
)]

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use oxidask_sim::{Coverage, attempt, generate, generate_wide, shrink};

/// What was asked for.
struct Options {
    seconds: u64,
    first: u64,
    threads: usize,
    /// Failures after which it ends; only the first is shrunk.
    failures: usize,
    seed: Option<u64>,
    shrink: Option<u64>,
    /// Makes plans of so many workers.
    machines: Option<usize>,
    steps: Option<Vec<usize>>,
    without: Vec<usize>,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(text) => {
            eprintln!("{text}\nSee the beginning of crates/sim/src/bin/soak.rs.");
            return ExitCode::from(2);
        }
    };
    if let Some(seed) = options.seed {
        return replay(seed, &options);
    }
    std::panic::set_hook(Box::new(|_| {}));
    if let Some(seed) = options.shrink {
        return match attempt(&generate(seed)) {
            Ok(_) => {
                println!("seed {seed} holds");
                ExitCode::SUCCESS
            }
            Err(text) => {
                report(seed, &text);
                ExitCode::FAILURE
            }
        };
    }
    soak(&options)
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let fresh = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut options = Options {
        seconds: 60,
        first: fresh.map_or(0, |elapsed| elapsed.as_nanos() as u64) & 0xffff_ffff_ffff,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        failures: 1,
        seed: None,
        shrink: None,
        machines: None,
        steps: None,
        without: Vec::new(),
    };
    while let Some(name) = args.next() {
        let value = args.next().ok_or(format!("{name} needs a value"))?;
        let number = || {
            let number = value.parse();
            number.map_err(|_| format!("{name} needs a number, not `{value}`"))
        };
        match &*name {
            "--seconds" => options.seconds = number()?,
            "--first" => options.first = number()?,
            "--threads" => options.threads = number()? as usize,
            "--failures" => options.failures = number()? as usize,
            "--seed" => options.seed = Some(number()?),
            "--shrink" => options.shrink = Some(number()?),
            "--machines" => options.machines = Some(number()? as usize),
            "--steps" => options.steps = Some(numbers(&value)?),
            "--without" => options.without = numbers(&value)?,
            _ => return Err(format!("unknown option `{name}`")),
        }
    }
    Ok(options)
}

fn numbers(text: &str) -> Result<Vec<usize>, String> {
    let parts = text.split(',').filter(|part| !part.is_empty());
    let numbers = parts.map(|part| {
        let number = part.parse();
        number.map_err(|_| format!("`{part}` is no number"))
    });
    numbers.collect()
}

fn replay(seed: u64, options: &Options) -> ExitCode {
    let mut plan = match options.machines {
        Some(machines) => generate_wide(seed, machines),
        None => generate(seed),
    };
    let all: Vec<usize> = (0..plan.steps.len()).collect();
    let steps = options.steps.as_ref().unwrap_or(&all);
    plan = plan.reduced(steps, &options.without);
    if options.machines.is_none() {
        println!("{plan}");
    }
    let begun = Instant::now();
    match attempt(&plan) {
        Ok(outcome) => {
            println!(
                "holds: {} events and {} runs in {:.3} s of virtual time, played in {:.1} s",
                outcome.events,
                outcome.runs.iter().sum::<u32>(),
                outcome.seconds,
                begun.elapsed().as_secs_f64()
            );
            ExitCode::SUCCESS
        }
        Err(text) => {
            println!("FAILS: {text}");
            ExitCode::FAILURE
        }
    }
}

fn soak(options: &Options) -> ExitCode {
    let begun = Instant::now();
    let time = Duration::from_secs(options.seconds);
    let next = AtomicU64::new(options.first);
    let failed = AtomicUsize::new(0);
    let total = Mutex::new((0_u64, 0_u64, Coverage::default()));
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..options.threads {
            scope.spawn(|| {
                let (mut schedules, mut events) = (0, 0);
                let mut coverage = Coverage::default();
                while begun.elapsed() < time && failed.load(Ordering::Relaxed) < options.failures {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    match attempt(&generate(seed)) {
                        Ok(outcome) => {
                            schedules += 1;
                            events += outcome.events;
                            coverage.merge(&outcome.coverage);
                        }
                        Err(text) => {
                            failed.fetch_add(1, Ordering::Relaxed);
                            failures
                                .lock()
                                .expect("no thread panics with the lock")
                                .push((seed, text));
                        }
                    }
                }
                let mut total = total.lock().expect("no thread panics with the lock");
                total.0 += schedules;
                total.1 += events;
                total.2.merge(&coverage);
            });
        }
    });
    let seconds = begun.elapsed().as_secs_f64();
    let (schedules, events, coverage) = total.into_inner().expect("no thread panics with the lock");
    let (on_scheduler, on_workers) = Coverage::table_sizes();
    let (missing, missing_on_workers) = (
        coverage.missing_on_scheduler(),
        coverage.missing_on_workers(),
    );
    println!(
        "{schedules} schedules from seed {} in {seconds:.0} s: {:.0} per second, {:.0} events each",
        options.first,
        schedules as f64 / seconds,
        events as f64 / schedules.max(1) as f64
    );
    println!(
        "transitions visited: scheduler {} of {on_scheduler}, workers {} of {on_workers}",
        on_scheduler - missing.len(),
        on_workers - missing_on_workers.len()
    );
    println!("not visited: scheduler {missing:?}, workers {missing_on_workers:?}");
    let failures = failures
        .into_inner()
        .expect("no thread panics with the lock");
    for (seed, text) in failures.iter().skip(1) {
        println!("seed {seed} FAILS: {text}");
    }
    if let Some((seed, text)) = failures.first() {
        report(*seed, text);
    }
    if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Shows the least that fails, and how to play it again.
fn report(seed: u64, text: &str) {
    println!("seed {seed} FAILS: {text}");
    let plan = generate(seed);
    let (steps, without) = shrink(&plan);
    let reduced = plan.reduced(&steps, &without);
    println!("what is needed of it:\n{reduced}");
    match attempt(&reduced) {
        Ok(_) => println!("it does not fail any more"),
        Err(text) => println!("which fails: {text}"),
    }
    println!(
        "play it again:\n  cargo run --release --package oxidask-sim -- --seed {seed} --steps {} --without {}",
        list(&steps),
        list(&without)
    );
}

fn list(numbers: &[usize]) -> String {
    let numbers: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    if numbers.is_empty() {
        ",".to_owned()
    } else {
        numbers.join(",")
    }
}
