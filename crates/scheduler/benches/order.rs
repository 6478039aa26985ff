//! Ordering graphs of about 200,000 tasks. The counter gives tasks per second.

use divan::counter::ItemsCount;
use oxidask_scheduler::order::{OrderInput, order};

fn main() {
    divan::main();
}

/// One graph in the form `order` takes.
struct Graph {
    dependency_offsets: Vec<u32>,
    dependencies: Vec<u32>,
    is_task: Vec<bool>,
    name_rank: Vec<u32>,
}

impl Graph {
    fn new() -> Self {
        Self {
            dependency_offsets: vec![0],
            dependencies: Vec::new(),
            is_task: Vec::new(),
            name_rank: Vec::new(),
        }
    }

    fn add(&mut self, dependencies: impl IntoIterator<Item = u32>) -> u32 {
        let task = self.is_task.len() as u32;
        self.dependencies.extend(dependencies);
        self.dependency_offsets.push(self.dependencies.len() as u32);
        self.is_task.push(true);
        self.name_rank.push(task);
        task
    }

    fn input(&self) -> OrderInput<'_> {
        OrderInput {
            dependency_offsets: &self.dependency_offsets,
            dependencies: &self.dependencies,
            is_task: &self.is_task,
            name_rank: &self.name_rank,
        }
    }
}

fn independent() -> Graph {
    let mut graph = Graph::new();
    for _ in 0..200_000 {
        graph.add([]);
    }
    graph
}

fn chain() -> Graph {
    let mut graph = Graph::new();
    let mut last = graph.add([]);
    for _ in 1..200_000 {
        last = graph.add([last]);
    }
    graph
}

fn binary_tree() -> Graph {
    let mut graph = Graph::new();
    let mut level: Vec<u32> = (0..100_000).map(|_| graph.add([])).collect();
    while level.len() > 1 {
        level = level
            .chunks(2)
            .map(|pair| graph.add(pair.iter().copied()))
            .collect();
    }
    graph
}

fn stencil() -> Graph {
    let mut graph = Graph::new();
    let mut level: Vec<u32> = (0..40_000).map(|_| graph.add([])).collect();
    for _ in 0..4 {
        level = (0..level.len())
            .map(|i| {
                let near = i.saturating_sub(1)..(i + 2).min(level.len());
                graph.add(level[near].iter().copied())
            })
            .collect();
    }
    graph
}

fn shuffle() -> Graph {
    let mut graph = Graph::new();
    let width = 440;
    let groups: Vec<u32> = (0..width).map(|_| graph.add([])).collect();
    let splits: Vec<u32> = (0..width * width)
        .map(|i| graph.add([groups[i / width]]))
        .collect();
    for j in 0..width {
        graph.add((0..width).map(|i| splits[i * width + j]));
    }
    graph
}

fn running_total() -> Graph {
    let mut graph = Graph::new();
    let mut total = graph.add([]);
    for _ in 0..50_000 {
        let block = graph.add([]);
        let sum = graph.add([block]);
        graph.add([block, total]);
        total = graph.add([sum, total]);
    }
    graph
}

/// Nothing to go by: three dependencies anywhere in the layer before.
fn random_layers() -> Graph {
    let mut graph = Graph::new();
    let width = 20_000;
    let mut state = 42u64;
    let mut random = || {
        // Constants of Knuth's MMIX generator.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % width
    };
    let mut level: Vec<u32> = (0..width).map(|_| graph.add([])).collect();
    for _ in 1..10 {
        level = (0..width)
            .map(|_| graph.add([level[random()], level[random()], level[random()]]))
            .collect();
    }
    graph
}

type Shape = (&'static str, fn() -> Graph);

const SHAPES: [Shape; 7] = [
    ("independent", independent),
    ("chain", chain),
    ("binary_tree", binary_tree),
    ("stencil", stencil),
    ("shuffle", shuffle),
    ("running_total", running_total),
    ("random_layers", random_layers),
];

#[divan::bench(args = SHAPES.map(|(name, _)| name), sample_count = 10, sample_size = 1)]
fn order_200k(bencher: divan::Bencher<'_, '_>, name: &str) {
    let (_, make) = SHAPES
        .into_iter()
        .find(|(other, _)| *other == name)
        .expect("the arguments are the names");
    let graph = make();
    bencher
        .counter(ItemsCount::new(graph.is_task.len()))
        .bench(|| order(&graph.input()));
}
