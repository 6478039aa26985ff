//! Paths and their handlers.

use std::sync::Arc;

use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_TYPE, HOST, LOCATION, ORIGIN};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use serde_json::json;

use crate::info::{Counts, Error, SchedulerInfo};
use crate::{WebsocketOrigins, api, eventstream, metrics, pages};

/// How the pages are served.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Path in front of every page, such as `user/me`; empty for none.
    pub prefix: String,
    /// Whether `/` and `/status` are there: `--dashboard`.
    pub dashboard: bool,
    /// Which groups of pages are there.
    pub routes: Routes,
    /// First part of Prometheus names, `distributed.dashboard.prometheus.namespace`.
    pub prometheus_namespace: String,
    /// Who may open WebSockets.
    pub websocket_origins: WebsocketOrigins,
}

/// Groups of pages: `distributed.scheduler.http.routes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routes {
    /// `/metrics`.
    pub prometheus: bool,
    /// `/info/…`, `/individual-plots.json`, `/eventstream`.
    pub info: bool,
    /// `/json/…`.
    pub json: bool,
    /// `/health`.
    pub health: bool,
    /// `/proxy/…`.
    pub proxy: bool,
    /// `/api/v1/…`.
    pub api: bool,
    /// `/statics/…`.
    pub statics: bool,
    /// Modules that are Python and cannot be served here.
    pub unknown: Vec<String>,
}

impl Default for Routes {
    fn default() -> Self {
        Self {
            prometheus: true,
            info: true,
            json: true,
            health: true,
            proxy: true,
            api: true,
            statics: true,
            unknown: Vec::new(),
        }
    }
}

impl Routes {
    /// From names of distributed's modules.
    #[must_use]
    pub fn from_modules(modules: &[String]) -> Self {
        let has = |name: &str| modules.iter().any(|module| module == name);
        let known = [
            "distributed.http.scheduler.prometheus",
            "distributed.http.scheduler.info",
            "distributed.http.scheduler.json",
            "distributed.http.health",
            "distributed.http.proxy",
            "distributed.http.statics",
            "distributed.http.scheduler.api",
            "distributed.http.scheduler.missing_bokeh",
        ];
        Self {
            prometheus: has(known[0]),
            info: has(known[1]),
            json: has(known[2]),
            health: has(known[3]),
            proxy: has(known[4]),
            statics: has(known[5]),
            api: has(known[6]),
            unknown: modules
                .iter()
                .filter(|module| !known.contains(&module.as_str()))
                .cloned()
                .collect(),
        }
    }
}

#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) info: Arc<dyn SchedulerInfo>,
    options: Arc<Options>,
    /// Paths for `/sitemap.json`, sorted.
    paths: Arc<Vec<String>>,
}

impl Server {
    /// Whether the page that a request comes from, if any, may do more than read.
    pub(crate) fn allows_origin(&self, headers: &HeaderMap) -> bool {
        let header = |name| headers.get(name).map(HeaderValue::as_bytes);
        let text = |name| header(name).map(String::from_utf8_lossy);
        let origins = &self.options.websocket_origins;
        origins.allow(text(ORIGIN).as_deref(), text(HOST).as_deref())
    }
}

/// All pages of a scheduler.
///
/// With a prefix every page lies below it; `/health` and `/sitemap.json` answer
/// at the root as well, for probes that know nothing of prefixes.
pub fn router(info: Arc<dyn SchedulerInfo>, options: Options) -> Router {
    let prefix = match options.prefix.trim_matches('/') {
        "" => String::new(),
        path => format!("/{path}"),
    };
    let mut routes: Vec<(String, MethodRouter<Server>)> = Vec::new();
    let mut add = |path: &str, handler: MethodRouter<Server>| {
        routes.push((format!("{prefix}{path}"), handler));
    };
    let enabled = &options.routes;
    if enabled.health {
        add("/health", get(health));
    }
    if enabled.prometheus {
        add("/metrics", get(prometheus));
    }
    if enabled.info {
        add(
            "/info",
            get(|| async { redirect("info/main/workers.html") }),
        );
        add("/info/main/workers.html", get(workers));
        add("/info/main/exceptions.html", get(exceptions));
        add("/info/main/logs.html", get(logs));
        add("/info/worker/{*name}", get(worker));
        add("/info/task/{*name}", get(task));
        add("/info/logs/{*name}", get(worker_logs));
        add("/info/call-stacks/{*name}", get(worker_call_stacks));
        add("/info/call-stack/{*name}", get(task_call_stacks));
        add(
            "/individual-plots.json",
            get(|| async { axum::Json(json!({})) }),
        );
        add("/eventstream", get(events));
    }
    if enabled.json {
        add("/json/counts.json", get(counts));
        add("/json/identity.json", get(identity));
        add(
            "/json/index.html",
            get(|| async { Html(pages::json_index()) }),
        );
    }
    if enabled.api {
        add("/api/v1", get(api::index));
        add("/api/v1/retire_workers", post(api::retire_workers));
        add("/api/v1/get_workers", get(api::workers));
        add("/api/v1/adaptive_target", get(api::adaptive_target));
        add("/api/v1/check_idle", get(api::check_idle));
    }
    if enabled.proxy {
        add("/proxy/{port}/{host}/{*path}", get(proxy));
    }
    if enabled.statics {
        add("/statics/css/base.css", get(style));
    }
    if options.dashboard {
        add("/", get(|| async { redirect("status") }));
        add("/status", get(|| async { Html(pages::status()) }));
        add("/status/", get(|| async { redirect("../status") }));
        if !prefix.is_empty() {
            // `/prefix` without its slash, and the root of the server.
            let folder = prefix.rsplit('/').next().unwrap_or_default();
            let status = format!("{folder}/status");
            add("", get(|| async move { redirect(&status) }));
            let status = format!("{}/status", prefix.trim_start_matches('/'));
            routes.push(("/".to_owned(), get(|| async move { redirect(&status) })));
        }
    }
    routes.push(("/sitemap.json".to_owned(), get(sitemap)));
    if !prefix.is_empty() {
        routes.push((format!("{prefix}/sitemap.json"), get(sitemap)));
        if enabled.health {
            routes.push(("/health".to_owned(), get(health)));
        }
    }
    let mut paths: Vec<String> = routes.iter().map(|(path, _)| path.clone()).collect();
    paths.sort();
    let mut router = Router::new();
    for (path, handler) in routes {
        router = router.route(&path, handler);
    }
    router.with_state(Server {
        info,
        options: Arc::new(options),
        paths: Arc::new(paths),
    })
}

/// A failed question as a response.
pub(crate) struct Failure(Error);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match self.0 {
            Error::Closing => StatusCode::SERVICE_UNAVAILABLE,
            Error::Worker(_) => StatusCode::BAD_GATEWAY,
            Error::Refused(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, self.0.to_string()).into_response()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

pub(crate) type Answer = Result<Response, Failure>;

fn page(html: String) -> Answer {
    Ok(Html(html).into_response())
}

fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "404: Not Found").into_response()
}

/// A redirect to a relative place: a proxy in front may have taken off a prefix.
fn redirect(place: &str) -> Response {
    match HeaderValue::from_str(place) {
        Ok(place) => (StatusCode::FOUND, [(LOCATION, place)]).into_response(),
        Err(_) => not_found(),
    }
}

/// The name in `NAME.html`.
fn page_name(file: &str) -> Option<&str> {
    file.strip_suffix(".html")
}

/// Spaces that a browser form or `urllib.parse.quote_plus` wrote as `+`. Only
/// tried when the text as it stands names nothing.
fn without_plus(name: &str) -> Option<String> {
    name.contains('+').then(|| name.replace('+', " "))
}

pub(crate) async fn health() -> Response {
    plain("text/plain; charset=utf-8", "ok".to_owned())
}

pub(crate) fn plain(content_type: &'static str, text: String) -> Response {
    (
        [(CONTENT_TYPE, HeaderValue::from_static(content_type))],
        text,
    )
        .into_response()
}

pub(crate) async fn style() -> Response {
    plain(
        "text/css; charset=utf-8",
        include_str!("base.css").to_owned(),
    )
}

async fn sitemap(State(server): State<Server>) -> Response {
    axum::Json(json!({"paths": *server.paths})).into_response()
}

async fn prometheus(State(server): State<Server>) -> Answer {
    let numbers = server.info.metrics().await?;
    let text = metrics::text(&server.options.prometheus_namespace, &numbers);
    Ok(plain("text/plain; version=0.0.4", text))
}

async fn workers(State(server): State<Server>) -> Answer {
    page(pages::workers(&server.info.workers().await?))
}

async fn worker(State(server): State<Server>, Path(file): Path<String>) -> Answer {
    match page_name(&file) {
        Some(address) => match server.info.worker(address).await? {
            Some(worker) => page(pages::worker(&worker)),
            None => Ok(not_found()),
        },
        None => Ok(not_found()),
    }
}

async fn task(State(server): State<Server>, Path(file): Path<String>) -> Answer {
    let Some(key) = page_name(&file) else {
        return Ok(not_found());
    };
    let mut found = server.info.task(key).await?;
    if found.is_none()
        && let Some(key) = without_plus(key)
    {
        found = server.info.task(&key).await?;
    }
    match found {
        Some(task) => page(pages::task(&task)),
        None => Ok(not_found()),
    }
}

async fn exceptions(State(server): State<Server>) -> Answer {
    page(pages::exceptions(&server.info.exceptions().await?))
}

async fn logs(State(server): State<Server>) -> Answer {
    page(pages::logs("Logs", 2, &server.info.logs().await?))
}

async fn worker_logs(State(server): State<Server>, Path(file): Path<String>) -> Answer {
    let Some(address) = page_name(&file) else {
        return Ok(not_found());
    };
    match server.info.worker_logs(address).await? {
        Some(lines) => page(pages::logs(&format!("Logs: {address}"), 2, &lines)),
        None => Ok(not_found()),
    }
}

async fn worker_call_stacks(State(server): State<Server>, Path(file): Path<String>) -> Answer {
    let Some(address) = page_name(&file) else {
        return Ok(not_found());
    };
    match server.info.worker_call_stacks(address).await? {
        Some(stacks) => page(pages::call_stacks(
            &format!("Call stacks: {address}"),
            &stacks,
        )),
        None => Ok(not_found()),
    }
}

async fn task_call_stacks(State(server): State<Server>, Path(file): Path<String>) -> Answer {
    let Some(key) = page_name(&file) else {
        return Ok(not_found());
    };
    let mut found = server.info.task_call_stacks(key).await?;
    if found.is_none()
        && let Some(key) = without_plus(key)
    {
        found = server.info.task_call_stacks(&key).await?;
    }
    match found {
        Some(stacks) if stacks.is_empty() => page(pages::nothing_running(key)),
        Some(stacks) => page(pages::call_stacks(&format!("Call stack: {key}"), &stacks)),
        None => Ok(not_found()),
    }
}

async fn counts(State(server): State<Server>) -> Answer {
    let counts: Counts = server.info.counts().await?;
    let body = json!({
        "bytes": counts.bytes,
        "clients": counts.clients,
        "cores": counts.cores,
        "erred": counts.erred,
        "hosts": counts.hosts,
        "idle": counts.idle,
        "memory": counts.memory,
        "processing": counts.processing,
        "released": counts.released,
        "saturated": counts.saturated,
        "tasks": counts.tasks,
        "unrunnable": counts.unrunnable,
        "waiting": counts.waiting,
        "waiting_data": counts.waiting_data,
        "workers": counts.workers,
        "desired_workers": counts.desired_workers,
    });
    Ok(axum::Json(body).into_response())
}

async fn identity(State(server): State<Server>) -> Answer {
    Ok(axum::Json(server.info.identity().await?).into_response())
}

async fn proxy(Path((port, host, path)): Path<(u16, String, String)>) -> Response {
    Html(pages::proxy(&host, port, &path)).into_response()
}

async fn events(
    State(server): State<Server>,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Answer {
    if !server.allows_origin(&headers) {
        let refused = (StatusCode::FORBIDDEN, "Cross origin websockets not allowed");
        return Ok(refused.into_response());
    }
    Ok(match server.info.subscribe().await? {
        // A ping is all that is read; nothing larger is let in.
        Some(events) => upgrade
            .max_message_size(64 * 1024)
            .on_upgrade(|socket| eventstream::serve(socket, server.info, events)),
        None => (
            StatusCode::NOT_IMPLEMENTED,
            "this scheduler streams no events",
        )
            .into_response(),
    })
}
