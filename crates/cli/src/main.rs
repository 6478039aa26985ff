//! `oxidask` without Python: the same commands as those of the Python package.

use std::ffi::OsString;
use std::path::Path;

use oxidask_server::options::PythonCommand;

// Many small messages are allocated and freed on different threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    std::process::exit(oxidask_cli::main(arguments, default_python(), None));
}

/// The interpreter of the active virtual environment, else `python3` in `PATH`;
/// `--python` has the last word.
fn default_python() -> PythonCommand {
    let environment = std::env::var_os("VIRTUAL_ENV");
    match environment.map(|folder| Path::new(&folder).join("bin/python")) {
        Some(python) if python.exists() => PythonCommand::new(python),
        Some(_) | None => PythonCommand::new("python3"),
    }
}
