//! `oxidask` whose workers run a few fixed functions, for tests of the command without
//! an interpreter.

#[path = "../../server/tests/worker/executor.rs"]
#[expect(dead_code, reason = "tests of the server use more of it")]
mod executor;

use std::ffi::OsString;
use std::sync::Arc;

use oxidask_server::options::PythonCommand;
use oxidask_server::worker::{Executor, ExecutorFactory, ExecutorSettings};

/// Makes toys.
struct Toys;

impl ExecutorFactory for Toys {
    fn create(&self, _: ExecutorSettings) -> Result<Arc<dyn Executor>, String> {
        Ok(Arc::new(executor::Toy::default()))
    }

    fn command(&self, _: &PythonCommand) -> Vec<OsString> {
        let program = std::env::current_exe().map(OsString::from);
        vec![program.unwrap_or_default(), "worker".into()]
    }
}

fn main() {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // Stock's worker is started with it where the class is not ours.
    let python = std::env::var_os("TOY_PYTHON").unwrap_or_else(|| "python3".into());
    let status = oxidask_cli::main(arguments, PythonCommand::new(python), Some(&Toys));
    std::process::exit(status);
}
