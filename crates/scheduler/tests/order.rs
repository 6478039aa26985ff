//! Properties of `order` that hold for every graph; that the orders are good is
//! for `tests/order` (Python), which compares with dask.

use oxidask_scheduler::order::{Cycle, Order, OrderInput, order};
use proptest::prelude::*;

/// One task: its dependencies, and whether it is one.
type Graph = Vec<(Vec<u32>, bool)>;

fn order_of(graph: &Graph, name_rank: &[u32]) -> Result<Order, Cycle> {
    let mut dependency_offsets = vec![0];
    let mut dependencies = Vec::new();
    for (task_dependencies, _) in graph {
        dependencies.extend_from_slice(task_dependencies);
        dependency_offsets.push(dependencies.len() as u32);
    }
    let is_task: Vec<bool> = graph.iter().map(|&(_, is_task)| is_task).collect();
    order(&OrderInput {
        dependency_offsets: &dependency_offsets,
        dependencies: &dependencies,
        is_task: &is_task,
        name_rank,
    })
}

fn order_by_index(graph: &Graph) -> Result<Order, Cycle> {
    let name_rank: Vec<u32> = (0..graph.len() as u32).collect();
    order_of(graph, &name_rank)
}

fn tasks(dependencies: impl IntoIterator<Item = Vec<u32>>) -> Graph {
    dependencies.into_iter().map(|d| (d, true)).collect()
}

#[track_caller]
fn check_valid(graph: &Graph, order: &Order) {
    let mut is_taken = vec![false; graph.len()];
    for &priority in &order.priority {
        assert!(!is_taken[priority as usize], "{priority} is given twice");
        is_taken[priority as usize] = true;
    }
    for (task, (dependencies, _)) in graph.iter().enumerate() {
        for &dependency in dependencies {
            assert!(
                order.priority[dependency as usize] < order.priority[task],
                "{task} comes before its dependency {dependency}"
            );
        }
    }
}

/// Acyclic graphs: every task depends on some before it, mostly on near ones.
fn graphs(is_task: impl Strategy<Value = bool> + Clone + 'static) -> impl Strategy<Value = Graph> {
    let task = (prop::collection::vec(0usize..40, 0..5), is_task);
    prop::collection::vec(task, 0..120).prop_map(|tasks| {
        let with_index = tasks.into_iter().enumerate();
        with_index
            .map(|(index, (distances, is_task))| {
                let mut dependencies: Vec<u32> = distances
                    .into_iter()
                    .filter(|&distance| distance < index)
                    .map(|distance| (index - 1 - distance) as u32)
                    .collect();
                dependencies.sort_unstable();
                dependencies.dedup();
                (dependencies, is_task)
            })
            .collect()
    })
}

fn graphs_with_shuffle() -> impl Strategy<Value = (Graph, Vec<u32>)> {
    graphs(Just(true)).prop_flat_map(|graph| {
        let places = Just((0..graph.len() as u32).collect::<Vec<u32>>()).prop_shuffle();
        (Just(graph), places)
    })
}

proptest! {
    #[test]
    fn is_a_topological_permutation(graph in graphs(prop::bool::weighted(0.7))) {
        let order = order_by_index(&graph).unwrap();
        check_valid(&graph, &order);
    }

    #[test]
    fn is_deterministic(graph in graphs(any::<bool>())) {
        prop_assert_eq!(order_by_index(&graph), order_by_index(&graph));
    }

    #[test]
    fn does_not_depend_on_insertion_order((graph, places) in graphs_with_shuffle()) {
        let mut shuffled: Graph = vec![(Vec::new(), true); graph.len()];
        let mut name_rank = vec![0; graph.len()];
        for (index, (dependencies, _)) in graph.iter().enumerate() {
            let moved = dependencies.iter().rev().map(|&d| places[d as usize]);
            shuffled[places[index] as usize].0 = moved.collect();
            name_rank[places[index] as usize] = index as u32;
        }
        let expected = order_by_index(&graph).unwrap();
        let order = order_of(&shuffled, &name_rank).unwrap();
        let moved_back: Vec<u32> =
            places.iter().map(|&place| order.priority[place as usize]).collect();
        prop_assert_eq!(moved_back, expected.priority);
    }

    #[test]
    fn finds_a_cycle(mut graph in graphs(any::<bool>()), from in any::<prop::sample::Index>()) {
        prop_assume!(!graph.is_empty());
        // A path down from some task, closed by one dependency upwards.
        let top = from.index(graph.len());
        let mut bottom = top;
        while let Some(&dependency) = graph[bottom].0.first() {
            bottom = dependency as usize;
        }
        graph[bottom].0.push(top as u32);
        let Cycle { chain } = order_by_index(&graph).unwrap_err();
        prop_assert!(chain.len() >= 2);
        prop_assert_eq!(chain.first(), chain.last());
        for pair in chain.windows(2) {
            prop_assert!(graph[pair[0] as usize].0.contains(&pair[1]));
        }
    }
}

#[test]
fn empty_graph() {
    assert_eq!(order_by_index(&Graph::new()).unwrap().priority, []);
}

#[test]
fn cycle_names_the_tasks() {
    let graph = tasks([vec![1], vec![2, 3], vec![0], vec![]]);
    let cycle = order_by_index(&graph).unwrap_err();
    assert_eq!(cycle.chain, [0, 1, 2, 0]);
    assert_eq!(
        cycle.to_string(),
        "cycle of 3 dependencies between tasks [0, 1, 2, 0]"
    );
}

#[test]
fn dependency_named_twice_counts_as_one() {
    let graph = tasks([vec![], vec![0, 0], vec![0], vec![1, 2, 2]]);
    check_valid(&graph, &order_by_index(&graph).unwrap());
}

#[test]
fn outputs_are_finished_one_by_one() {
    // Two loads into each of two sums.
    let graph = tasks([vec![], vec![], vec![], vec![], vec![0, 2], vec![1, 3]]);
    let priority = order_by_index(&graph).unwrap().priority;
    assert_eq!([priority[4], priority[5]], [5, 2]);
}

#[test]
fn alias_of_outputs_comes_last() {
    let mut graph = tasks([vec![], vec![0], vec![], vec![2], vec![1, 3]]);
    graph[4].1 = false;
    let order = order_by_index(&graph).unwrap();
    check_valid(&graph, &order);
    assert_eq!(order.priority[4], 4);
    assert_eq!(order.critical_path[4], -1.0);
}

#[test]
fn shared_data_comes_right_before_its_first_user() {
    let mut graph = tasks([vec![], vec![], vec![1], vec![0, 2], vec![0, 1]]);
    graph[0].1 = false;
    let order = order_by_index(&graph).unwrap();
    check_valid(&graph, &order);
    let first_user = order.priority[3].min(order.priority[4]);
    assert_eq!(order.priority[0] + 1, first_user);
}

#[test]
fn data_used_only_by_aliases_is_numbered() {
    let mut graph = tasks([vec![], vec![], vec![0, 1], vec![0, 1]]);
    for (_, is_task) in &mut graph {
        *is_task = false;
    }
    check_valid(&graph, &order_by_index(&graph).unwrap());
}

/// Sums along paths leave 128 bits here, and must still order the chain.
#[test]
fn many_diamonds_in_a_row() {
    let mut graph = tasks([vec![]]);
    for _ in 0..200 {
        let top = graph.len() as u32 - 1;
        graph.extend(tasks([vec![top], vec![top], vec![top + 1, top + 2]]));
    }
    check_valid(&graph, &order_by_index(&graph).unwrap());
}

#[test]
fn chain_of_a_million_tasks() {
    let graph = tasks((0..1_000_000u32).map(|i| i.checked_sub(1).into_iter().collect()));
    let order = order_by_index(&graph).unwrap();
    assert!(order.priority.is_sorted());
}

#[test]
fn fan_of_a_million_tasks() {
    let last = 1_000_000u32;
    let mut graph = tasks([vec![]]);
    graph.extend(tasks((1..last).map(|_| vec![0])));
    graph.extend(tasks([(1..last).collect()]));
    check_valid(&graph, &order_by_index(&graph).unwrap());
}

/// A comb: at every step of a long chain there is an output.
#[test]
fn outputs_along_a_long_chain() {
    let mut graph = tasks([vec![]]);
    for i in 0..200_000u32 {
        let last = if i == 0 { 0 } else { 2 * i - 1 };
        graph.extend(tasks([vec![last], vec![last]]));
    }
    check_valid(&graph, &order_by_index(&graph).unwrap());
}

/// Root sets do not compress here, so both of their limits are at work.
#[test]
fn tangled_graph_beyond_the_limits_of_exact_sets() {
    let width = 20_000u32;
    let mut graph = tasks((0..width).map(|_| vec![]));
    for i in 0..width {
        let mut dependencies: Vec<u32> = (0..20u32)
            .map(|k| i.wrapping_mul(7919).wrapping_add(k * k * 4243) % width)
            .collect();
        dependencies.sort_unstable();
        dependencies.dedup();
        graph.push((dependencies, true));
    }
    check_valid(&graph, &order_by_index(&graph).unwrap());
}
