//! The native order for Python, on indices instead of keys.

use oxidask_scheduler::order::{OrderInput, order};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Orders the tasks of one graph, see `oxidask_scheduler::order`.
///
/// All arguments are packed arrays in native byte order: `u32` offsets (one more
/// than tasks), `u32` indices of dependencies, one byte per task that is not 0
/// for a task and 0 for data, and the `u32` rank of each name. Returns the
/// priorities as `u32` and the numbers of the critical paths as `f64`.
///
/// Raises `ValueError` if the arrays do not fit together, and
/// `RuntimeError(message, chain)` with the indices of a cycle if there is one.
#[pyfunction]
#[pyo3(signature = (dependency_offsets, dependencies, is_task, name_rank, /))]
pub(crate) fn order_indices<'py>(
    py: Python<'py>,
    dependency_offsets: &[u8],
    dependencies: &[u8],
    is_task: &[u8],
    name_rank: &[u8],
) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
    let dependency_offsets = unpack_u32("dependency_offsets", dependency_offsets)?;
    let dependencies = unpack_u32("dependencies", dependencies)?;
    let is_task: Vec<bool> = is_task.iter().map(|&byte| byte != 0).collect();
    let name_rank = unpack_u32("name_rank", name_rank)?;
    let input = OrderInput {
        dependency_offsets: &dependency_offsets,
        dependencies: &dependencies,
        is_task: &is_task,
        name_rank: &name_rank,
    };
    if !input.is_consistent() {
        return Err(PyValueError::new_err(format!(
            "arrays of a graph of {} tasks do not fit together",
            is_task.len()
        )));
    }
    let order = py
        .detach(|| order(&input))
        .map_err(|cycle| PyRuntimeError::new_err((cycle.to_string(), cycle.chain)))?;
    let priority: Vec<u8> = order
        .priority
        .iter()
        .flat_map(|p| p.to_ne_bytes())
        .collect();
    let critical_path: Vec<u8> = order
        .critical_path
        .iter()
        .flat_map(|p| p.to_ne_bytes())
        .collect();
    Ok((
        PyBytes::new(py, &priority),
        PyBytes::new(py, &critical_path),
    ))
}

fn unpack_u32(name: &str, bytes: &[u8]) -> PyResult<Vec<u32>> {
    let (values, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(PyValueError::new_err(format!(
            "`{name}` has {} bytes, not a multiple of 4",
            bytes.len()
        )));
    }
    Ok(values
        .iter()
        .map(|&value| u32::from_ne_bytes(value))
        .collect())
}
