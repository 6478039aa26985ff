//! A plan of a seed.

use crate::plan::{Action, Expansion, Machine, P2p, Plan, Role, Settings, Step, Task};
use crate::random::Random;

/// Makes a plan. The same seed makes the same plan.
pub fn generate(seed: u64) -> Plan {
    let mut maker = Maker {
        random: Random::new(seed ^ 0x5eed),
        tasks: Vec::new(),
        graphs: Vec::new(),
        steps: Vec::new(),
        clients: 0,
        machines: 0,
    };
    let settings = maker.settings();
    let machines = maker.machines();
    maker.clients = maker.random.between(1, 3) as usize;
    maker.workload();
    maker.script();
    maker.steps.sort_by_key(|step| step.at);
    Plan {
        seed,
        settings,
        tasks: maker.tasks,
        machines,
        clients: maker.clients,
        steps: maker.steps,
    }
}

/// Makes a plan of many workers, of which a few in a hundred have something happen to
/// them: two tasks a worker, pairs of which are added to something that everybody needs,
/// and all of those added up.
pub fn generate_wide(seed: u64, machines: usize) -> Plan {
    let mut maker = Maker {
        random: Random::new(seed ^ 0x51de),
        tasks: Vec::new(),
        graphs: Vec::new(),
        steps: Vec::new(),
        clients: 1,
        machines,
    };
    maker.wide_workload();
    maker.wide_script();
    maker.steps.sort_by_key(|step| step.at);
    let mut plan = Plan {
        seed,
        settings: Settings {
            delay_max: 10_000,
            heartbeat_interval: 10_000_000,
            validate_every: machines as u64,
            ..Settings::default()
        },
        tasks: maker.tasks,
        machines: vec![Machine::default(); machines],
        clients: maker.clients,
        steps: maker.steps,
    };
    for machine in &mut plan.machines {
        machine.nthreads = maker.random.between(1, 2) as u32;
    }
    plan
}

struct Maker {
    random: Random,
    tasks: Vec<Task>,
    graphs: Vec<Vec<usize>>,
    steps: Vec<Step>,
    clients: usize,
    machines: usize,
}

impl Maker {
    fn settings(&mut self) -> Settings {
        let random = &mut self.random;
        let delay_max = random.pick(&[1_000, 10_000, 100_000, 600_000]);
        Settings {
            delay_min: 100,
            delay_max,
            late_percent: random.pick(&[0, 0, 2, 20]),
            late_max: random.pick(&[500_000, 3_000_000]),
            heartbeat_interval: random.pick(&[500_000, 2_000_000]),
            worker_ttl: random.pick(&[30_000_000, 300_000_000]),
            outgoing_max: random.pick(&[1, 2, 50]),
            incoming_max: random.pick(&[1, 2, 10]),
            allowed_failures: random.pick(&[0, 3, 3]),
            worker_saturation: random.pick(&[1.0, 1.1, 1.1, 2.0, f64::INFINITY]),
            work_stealing: random.chance(75),
            no_workers_timeout: random.chance(15).then_some(8.0),
            graph_slice: random.pick(&[3, 2_000, 2_000]),
            memory_manager: random.chance(75),
            validate_every: 1,
        }
    }

    fn machines(&mut self) -> Vec<Machine> {
        self.machines = self.random.between(1, 6) as usize;
        let mut machines = Vec::new();
        for _ in 0..self.machines {
            let random = &mut self.random;
            machines.push(Machine {
                nthreads: random.between(1, 3) as u32,
                has_gpu: random.chance(40),
                clock_skew: random.pick(&[0.0, 0.0, 0.3, -7.0, 3600.0]),
                memory_limit: random.chance(20).then_some(1_000_000_000),
            });
        }
        machines
    }

    // What is computed.

    fn workload(&mut self) {
        let has_faulty_tasks = self.random.chance(50);
        let count = self.random.between(1, 4);
        for _ in 0..count {
            let begin = self.tasks.len();
            match self.random.below(6) {
                0 => self.chain(),
                1 => self.fan(),
                2 => self.shuffle(),
                3 => self.independent(),
                _ => self.dag(),
            }
            let end = self.tasks.len();
            let mut graph: Vec<usize> = (begin..end).collect();
            graph.retain(|&task| !self.tasks[task].is_data);
            self.graphs.push(graph);
        }
        if self.random.chance(15) {
            self.submit_from_a_task();
        }
        for number in 0..self.tasks.len() {
            self.behave(number, has_faulty_tasks);
        }
    }

    fn task(&mut self, prefix: &str, dependencies: Vec<usize>) -> usize {
        let number = self.tasks.len();
        self.tasks
            .push(Task::new(&format!("{prefix}-{number}"), &dependencies));
        number
    }

    fn chain(&mut self) {
        let mut last = self.task("chain", Vec::new());
        for _ in 0..self.random.between(1, 6) {
            last = self.task("chain", vec![last]);
        }
    }

    fn fan(&mut self) {
        let root = self.task("root", Vec::new());
        let width = self.random.between(2, 10);
        let leaves: Vec<usize> = (0..width).map(|_| self.task("leaf", vec![root])).collect();
        self.task("sum", leaves);
    }

    fn independent(&mut self) {
        for _ in 0..self.random.between(2, 14) {
            self.task("map", Vec::new());
        }
    }

    fn shuffle(&mut self) {
        let width = self.random.between(2, 4);
        let inputs: Vec<usize> = (0..width).map(|_| self.task("load", Vec::new())).collect();
        let moved: Vec<usize> = inputs
            .iter()
            .map(|&input| self.task("transfer", vec![input]))
            .collect();
        let barrier = self.task("barrier", moved.clone());
        let outputs: Vec<usize> = (0..width)
            .map(|_| self.task("unpack", vec![barrier]))
            .collect();
        if self.random.chance(60) {
            self.tasks[barrier].name = format!("shuffle-barrier-{barrier}");
            let shuffle = barrier;
            let mut part = |task: usize, role| {
                self.tasks[task].p2p = Some(P2p { shuffle, role });
            };
            part(barrier, Role::Barrier);
            for task in moved {
                part(task, Role::Transfer);
            }
            for (partition, task) in outputs.into_iter().enumerate() {
                part(task, Role::Unpack { partition });
            }
        }
    }

    fn dag(&mut self) {
        let begin = self.tasks.len();
        let data = if self.random.chance(25) {
            let data = self.task("data", Vec::new());
            self.tasks[data].is_data = true;
            1
        } else {
            0
        };
        for index in 0..self.random.between(2, 14) as usize + data {
            let mut dependencies = Vec::new();
            for _ in 0..self.random.below(4) {
                if index > 0 {
                    dependencies.push(begin + self.random.index(index));
                }
            }
            // Of earlier graphs as well.
            if begin > 0 && self.random.chance(10) {
                dependencies.push(self.random.index(begin));
            }
            dependencies.sort_unstable();
            dependencies.dedup();
            dependencies.retain(|&dependency| dependency < self.tasks.len());
            let prefix = self.random.pick(&["x", "y", "z"]);
            self.task(prefix, dependencies);
        }
    }

    /// What is submitted comes after the task that submits it.
    fn submit_from_a_task(&mut self) {
        let parent = self.task("submit", Vec::new());
        let first = self.task("inner", Vec::new());
        let last = self.task("inner", vec![first]);
        self.tasks[parent].submits = vec![first, last];
        self.graphs.push(vec![parent]);
    }

    fn behave(&mut self, number: usize, has_faulty_tasks: bool) {
        let random = &mut self.random;
        let machines = self.machines;
        let task = &mut self.tasks[number];
        task.duration = match random.below(5) {
            0 => random.below(1_000),
            1 | 2 => random.between(1_000, 100_000),
            3 => random.between(10_000, 1_000_000),
            _ => random.between(500_000, 4_000_000),
        };
        task.nbytes = random.pick(&[1, 100, 10_000, 30_000_000]);
        if task.p2p.is_some() {
            return;
        }
        // What a task waits for must not need what the task has taken.
        let is_nested = task.name.starts_with("submit") || task.name.starts_with("inner");
        task.needs_gpu = random.chance(5) && !is_nested;
        task.is_actor = random.chance(3) && !is_nested && !task.is_data;
        task.secedes = random.chance(7);
        task.priority = random.pick(&[0, 0, 0, 0, 1, -1]);
        if random.chance(5) {
            task.pinned = Some(random.index(machines));
        }
        if !has_faulty_tasks || task.is_data {
            return;
        }
        match random.below(14) {
            13 => task.kills = random.between(1, 4) as u32,
            12 => task.unreadable = random.between(1, 2) as u32,
            0 => task.failures = u32::MAX / 4,
            1 => {
                task.failures = random.between(1, 2) as u32;
                task.retries = random.between(0, 2) as i64;
            }
            2 => task.reschedules = random.between(1, 2) as u32,
            3 if !task.is_actor => {
                task.unstorable = 1;
                task.retries = random.between(0, 1) as i64;
            }
            _ => {}
        }
    }

    fn wide_workload(&mut self) {
        let common = self.task("common", Vec::new());
        let pairs: Vec<usize> = (0..self.machines)
            .map(|_| {
                let left = self.task("left", Vec::new());
                let right = self.task("right", Vec::new());
                self.task("add", vec![common, left, right])
            })
            .collect();
        let mut level = pairs;
        while level.len() > 1 {
            let sums = level.chunks(WIDE_SUM).map(<[usize]>::to_vec);
            let sums: Vec<Vec<usize>> = sums.collect();
            level = sums.into_iter().map(|sum| self.task("sum", sum)).collect();
        }
        for task in &mut self.tasks {
            task.duration = self.random.between(1_000, 200_000);
        }
        self.graphs.push((0..self.tasks.len()).collect());
    }

    fn wide_script(&mut self) {
        for machine in 0..self.machines {
            let at = self.random.below(1_000_000);
            self.at(at, Action::Start { machine });
        }
        let graph = self.graphs[0].clone();
        let wanted = graph.last().copied().into_iter().collect();
        let (client, expansion) = (0, Expansion::Bundle);
        let submit = Action::Submit {
            client,
            tasks: graph,
            wanted,
            expansion,
        };
        self.at(900_000, submit);
        for _ in 0..self.machines.div_ceil(100) {
            let times = [(); 4].map(|()| self.random.between(500_000, 8_000_000));
            let crash = Action::Crash {
                machine: self.machine(),
                flushed: self.random.chance(50),
                returns: Some(self.random.below(3_000_000)),
                same_address: false,
            };
            self.at(times[0], crash);
            let (machine, noticed) = (self.machine(), 1_000_000);
            self.at(times[1], Action::Break { machine, noticed });
            let (machine, time) = (self.machine(), 5_000_000);
            self.at(times[2], Action::Freeze { machine, time });
            let machine = self.machine();
            self.at(times[3], Action::Retire { machine });
        }
    }

    // What happens.

    fn script(&mut self) {
        let has_faults = self.random.chance(85);
        let length = self.random.pick(&[1_000_000, 5_000_000, 20_000_000]);
        for machine in 0..self.machines {
            let at = if self.random.chance(80) {
                0
            } else {
                self.random.below(length)
            };
            self.at(at, Action::Start { machine });
        }
        for task in 0..self.tasks.len() {
            if self.tasks[task].is_data {
                let at = self.random.below(length / 4);
                self.scatter(at, task);
            }
        }
        for graph in self.graphs.clone() {
            let at = self.random.below(length / 2);
            self.submit(at, &graph);
        }
        if !has_faults {
            return;
        }
        // Every run has a few kinds of faults of its own, so that each meets the others alone.
        let kinds: Vec<u64> = (0..self.random.between(1, 5))
            .map(|_| self.random.below(FAULTS))
            .collect();
        let storm = self.random.chance(15);
        let count = if storm {
            self.random.between(20, 60)
        } else {
            self.random.between(1, 14)
        };
        for _ in 0..count {
            let at = self.random.below(length);
            let kind = self.random.pick(&kinds);
            self.fault(at, kind);
        }
    }

    fn at(&mut self, at: u64, action: Action) {
        self.steps.push(Step { at, action });
    }

    fn client(&mut self) -> usize {
        self.random.index(self.clients)
    }

    fn machine(&mut self) -> usize {
        self.random.index(self.machines)
    }

    fn submit(&mut self, at: u64, graph: &[usize]) {
        let mut wanted: Vec<usize> = Vec::new();
        if self.random.chance(50) {
            // What nobody else needs, as `compute` asks for.
            let is_needed = |task: &usize| {
                graph
                    .iter()
                    .any(|&other| self.tasks[other].dependencies.contains(task))
            };
            wanted.extend(graph.iter().filter(|task| !is_needed(task)));
        } else {
            for &task in graph {
                if self.random.chance(40) {
                    wanted.push(task);
                }
            }
        }
        if wanted.is_empty() {
            wanted.extend(graph.last());
        }
        let client = self.client();
        let expansion = match self.random.below(30) {
            0 => Expansion::Fails,
            1 => Expansion::BundleFails,
            2..=9 => Expansion::Bundle,
            _ => Expansion::Pickles,
        };
        let tasks = graph.to_vec();
        self.at(
            at,
            Action::Submit {
                client,
                tasks,
                wanted,
                expansion,
            },
        );
    }

    fn scatter(&mut self, at: u64, task: usize) {
        let client = self.client();
        let machine = self.machine();
        self.at(
            at,
            Action::Scatter {
                client,
                task,
                machine,
            },
        );
    }

    fn some_tasks(&mut self) -> Vec<usize> {
        let count = self.random.between(1, 4);
        let graph = self.random.index(self.graphs.len());
        let graph = self.graphs[graph].clone();
        if graph.is_empty() {
            return Vec::new();
        }
        let mut tasks: Vec<usize> = (0..count)
            .map(|_| graph[self.random.index(graph.len())])
            .collect();
        tasks.sort_unstable();
        tasks.dedup();
        tasks
    }

    fn fault(&mut self, at: u64, kind: u64) {
        let client = self.client();
        let machine = self.machine();
        let time = self
            .random
            .pick(&[100_000, 1_000_000, 5_000_000, 60_000_000]);
        let tasks = self.some_tasks();
        let action = match kind {
            0 | 1 => Action::Crash {
                machine,
                flushed: self.random.chance(50),
                returns: self.random.chance(70).then(|| self.random.below(3_000_000)),
                same_address: self.random.chance(30),
            },
            2 => Action::Break {
                machine,
                noticed: time,
            },
            3 => Action::Freeze { machine, time },
            4 => Action::Pause { machine, time },
            5 => Action::Cut {
                from: machine,
                to: self.machine(),
                time,
            },
            6 => Action::Retire { machine },
            7 | 8 => Action::Release { client, tasks },
            9 => Action::Cancel {
                client,
                tasks,
                force: self.random.chance(50),
            },
            10 => Action::Retry { client, tasks },
            11 => Action::FireAndForget { client, tasks },
            12 => Action::Disconnect { client },
            13 => Action::Connect { client },
            14 => Action::Start { machine },
            15 => Action::Adapt,
            16 => Action::Replicate {
                machine,
                task: tasks.first().copied().unwrap_or_default(),
            },
            17 if self.random.chance(30) => Action::Restart,
            18 => Action::StartTwice {
                machine,
                noticed: self.random.pick(&[10_000, 300_000, 3_000_000]),
            },
            19 => Action::Stall { time },
            20 => Action::SlowDisk {
                machine,
                read: self.random.pick(&[50_000, 3_000_000]),
                time,
            },
            21 => Action::Damage {
                machine,
                task: tasks.first().copied().unwrap_or_default(),
            },
            _ => {
                let graph = self.random.index(self.graphs.len());
                let graph = self.graphs[graph].clone();
                return self.submit(at, &graph);
            }
        };
        self.at(at, action);
    }
}

/// Kinds of faults, where the last ones submit again.
const FAULTS: u64 = 25;

/// Terms of a sum in a large cluster.
const WIDE_SUM: usize = 50;
