//! Plug-ins of workers, nannies and the scheduler.

use oxidask_scheduler::Failure;
use oxidask_wire::{Map, Value, map, message};
use tracing::info;

use super::super::args::{Args, runtime_error, type_error, value_error};
use super::super::shell::{Shell, ShellHandle};
use super::broadcast::Broadcast;

pub(super) async fn register_worker_plugin(
    shell: &ShellHandle,
    mut args: Args,
) -> Result<Value, Failure> {
    let plugin = args.required("plugin")?.detached();
    let name = args.str("name")?;
    let idempotent = args.flag("idempotent", false);
    info!(target: "distributed.scheduler", "Registering Worker plugin {name}");
    let message = map! { "op" => "plugin-add", "plugin" => plugin.clone(), "name" => name.clone() };
    let stored = shell
        .call(move |shell| store(&mut shell.worker_plugins, &name, plugin, idempotent))
        .await?;
    if !stored {
        return Ok(Value::Map(Map::new()));
    }
    Ok(Value::Map(Broadcast::to_all(message).send(shell).await?))
}

/// False if an idempotent plug-in is there already.
fn store(plugins: &mut Map, name: &str, plugin: Value, idempotent: bool) -> bool {
    if idempotent && plugins.contains_key(name) {
        return false;
    }
    plugins.insert(name, plugin);
    true
}

pub(super) async fn unregister_worker_plugin(
    shell: &ShellHandle,
    mut args: Args,
) -> Result<Value, Failure> {
    let name = args.str("name")?;
    let message = map! { "op" => "plugin-remove", "name" => name.clone() };
    let known = name.clone();
    let removed = shell.call(move |shell| shell.worker_plugins.take(&known));
    was_known(removed.await?, "worker", &name)?;
    Ok(Value::Map(Broadcast::to_all(message).send(shell).await?))
}

/// The error for a plug-in that nobody registered.
fn was_known(removed: Option<Value>, role: &str, name: &str) -> Result<(), Failure> {
    match removed {
        Some(_) => Ok(()),
        None => Err(value_error(&format!(
            "The {role} plugin {name} does not exist"
        ))),
    }
}

pub(super) async fn register_nanny_plugin(
    shell: &ShellHandle,
    mut args: Args,
) -> Result<Value, Failure> {
    let plugin = args.required("plugin")?.detached();
    let name = args.str("name")?;
    let idempotent = args.flag("idempotent", false);
    info!(target: "distributed.scheduler", "Registering Nanny plugin {name}");
    let message = map! { "op" => "plugin_add", "plugin" => plugin.clone(), "name" => name.clone() };
    let stored = shell.call(move |shell| {
        store(&mut shell.nanny_plugins, &name, plugin, idempotent)
            .then(|| shell.starting_nannies.subscribe())
    });
    let Some(mut starting) = stored.await? else {
        return Ok(Value::Map(Map::new()));
    };
    // A nanny that is being started has been given the plug-ins known then; it
    // can be asked only once its worker has registered.
    let _ = starting.wait_for(|starting| *starting == 0).await;
    let broadcast = Broadcast {
        nanny: true,
        ..Broadcast::to_all(message)
    };
    Ok(Value::Map(broadcast.send(shell).await?))
}

pub(super) async fn unregister_nanny_plugin(
    shell: &ShellHandle,
    mut args: Args,
) -> Result<Value, Failure> {
    let name = args.str("name")?;
    let message = map! { "op" => "plugin_remove", "name" => name.clone() };
    let known = name.clone();
    let removed = shell.call(move |shell| shell.nanny_plugins.take(&known));
    was_known(removed.await?, "nanny", &name)?;
    let broadcast = Broadcast {
        nanny: true,
        ..Broadcast::to_all(message)
    };
    Ok(Value::Map(broadcast.send(shell).await?))
}

/// `SchedulerUploadFile` is what the graph helper needs to unpickle graphs; every
/// other plug-in runs in the plug-in host.
pub(super) async fn register_scheduler_plugin(
    shell: &ShellHandle,
    mut args: Args,
) -> Result<Value, Failure> {
    let Some(pickle) = args.required("plugin")?.into_bin() else {
        return Err(type_error(
            "register_scheduler_plugin: `plugin` must be a pickle",
        ));
    };
    let answer = crate::graph_helper::request(
        &shell.helpers,
        "scheduler_plugin",
        map! { "plugin" => pickle.clone() },
    )
    .await?;
    if answer.get("kind").and_then(Value::as_str) != Some("upload") {
        let name = args.optional("name");
        let fields = map! {
            "plugin" => pickle,
            "name" => name.clone(),
            "idempotent" => args.flag("idempotent", false),
        };
        return shell.host.add_plugin(name.as_str(), fields).await;
    }
    let name = answer
        .get("name")
        .and_then(Value::as_str)
        .map(str::to_owned);
    let data = answer
        .get("data")
        .and_then(Value::as_bin)
        .map(|data| bytes::Bytes::copy_from_slice(data));
    let (Some(name), Some(data)) = (name, data) else {
        return Err(runtime_error(
            "the graph helper did not understand the uploaded file",
        ));
    };
    // Tried in one helper first, so that a file that cannot be loaded is an error here.
    let fields = map! { "name" => name.as_str(), "data" => data.clone(), "load" => true };
    crate::graph_helper::request(&shell.helpers, "upload", fields).await?;
    let uploaded = map! { "name" => name.as_str(), "data" => data.clone() };
    shell
        .call(move |shell| add_upload(shell, name, data))
        .await?;
    if shell.host.is_running().await {
        // A host that starts later has it from the helpers.
        shell.host.request("upload", uploaded).await?;
    }
    Ok(Value::Nil)
}

fn add_upload(shell: &mut Shell, name: String, data: bytes::Bytes) {
    shell.uploads.retain(|(uploaded, _)| *uploaded != name);
    shell.uploads.push((name, data));
    shell.handle.helpers.set_uploads(shell.uploads.clone());
}

pub(super) async fn unregister_scheduler_plugin(
    shell: &ShellHandle,
    mut args: Args,
) -> Result<Value, Failure> {
    let name = args.str("name")?;
    if shell.host.is_running().await {
        return shell.host.remove_plugin(&name).await;
    }
    Err(value_error(&format!(
        "Could not find plugin '{name}' among the current scheduler plugins"
    )))
}

/// `run_on_scheduler`.
pub(super) async fn run_function(shell: &ShellHandle, mut args: Args) -> Result<Value, Failure> {
    let function = args.required("function")?;
    args.0.insert("function", function.clone());
    let event = map! { "action" => "run-function", "function" => function.detached() };
    shell
        .call(move |shell| shell.log_event(&["all"], Value::Map(event)))
        .await?;
    let serializers = args.optional("serializers");
    let frames = message::encode(&Value::Map(args.0));
    let frames: Value = frames.into_iter().map(Value::from).collect();
    let fields = map! { "frames" => frames, "serializers" => serializers };
    shell.host.request("run", fields).await
}

/// Whether a plug-in has a say in which workers `retire_workers` retires.
pub(super) fn choose_workers(shell: &ShellHandle, args: &Args) -> bool {
    let is_named = |name| args.0.get(name).is_some_and(|value| !value.is_nil());
    shell.host.handles("workers_to_close") && !is_named("workers") && !is_named("names")
}

/// Retires the workers that the plug-ins agree to.
pub(super) async fn retire_chosen(shell: &ShellHandle, args: Args) -> Result<Value, Failure> {
    let (mut choice, mut retirement) = (Map::new(), Map::new());
    for (name, value) in args.0 {
        match name.as_str() {
            Some("workers" | "names") => {}
            Some("remove" | "close_workers" | "stimulus_id") => retirement.push(name, value),
            Some(_) | None => choice.push(name, value),
        }
    }
    let workers = shell.host.handle("workers_to_close", choice, false).await?;
    if workers.as_array().is_none() {
        // The exception that a plug-in raised, as a message.
        return Ok(workers);
    }
    retirement.push("workers", workers);
    super::extension_reply(shell, "retire_workers", Args(retirement)).await
}
