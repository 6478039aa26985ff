//! Pages of a worker, on its dashboard port: `/health`, `/metrics`, `/sitemap.json`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, get};
use serde_json::json;

use crate::info::Reply;
use crate::metrics::Families;
use crate::router::{Answer, health, plain, style};

/// A worker as its pages see it.
pub trait WorkerInfo: Send + Sync + 'static {
    /// Numbers for `/metrics`.
    fn metrics(&self) -> Reply<'_, WorkerMetrics>;
}

/// How a worker's pages are served.
#[derive(Debug, Clone, Default)]
pub struct WorkerOptions {
    /// Path in front of every page; empty for none.
    pub prefix: String,
    /// Which groups of pages are there.
    pub routes: WorkerRoutes,
    /// First part of Prometheus names, `distributed.dashboard.prometheus.namespace`.
    pub prometheus_namespace: String,
}

/// Groups of pages: `distributed.worker.http.routes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerRoutes {
    /// `/metrics`.
    pub prometheus: bool,
    /// `/health`.
    pub health: bool,
    /// `/statics/…`.
    pub statics: bool,
    /// Modules that are Python and cannot be served here.
    pub unknown: Vec<String>,
}

impl Default for WorkerRoutes {
    fn default() -> Self {
        Self {
            prometheus: true,
            health: true,
            statics: true,
            unknown: Vec::new(),
        }
    }
}

impl WorkerRoutes {
    /// From names of distributed's modules.
    #[must_use]
    pub fn from_modules(modules: &[String]) -> Self {
        let known = [
            "distributed.http.worker.prometheus",
            "distributed.http.health",
            "distributed.http.statics",
        ];
        let has = |name: &str| modules.iter().any(|module| module == name);
        Self {
            prometheus: has(known[0]),
            health: has(known[1]),
            statics: has(known[2]),
            unknown: modules
                .iter()
                .filter(|module| !known.contains(&module.as_str()))
                .cloned()
                .collect(),
        }
    }
}

/// Numbers of a worker, with the names of `/metrics`. Those that end in `_total`
/// only grow.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WorkerMetrics {
    /// Tasks by state; `disk` are those in `memory` whose values are spilled.
    pub tasks: Vec<(&'static str, u64)>,
    /// Seconds spent collecting garbage.
    pub gc_collection_seconds_total: f64,
    /// Tasks that run at a time.
    pub threads: usize,
    /// Seconds that the scheduler took for its last answer.
    pub latency_seconds: f64,
    /// Bytes of the process.
    pub process_nbytes: u64,
    /// Bytes of all values by `sizeof`, without spilled ones.
    pub managed_nbytes: u64,
    /// Bytes on disk.
    pub spilled_nbytes: u64,
    /// Bytes on their way from other workers.
    pub transfer_incoming_bytes: i64,
    /// Transfers from other workers.
    pub transfer_incoming_count: usize,
    /// The same since the start.
    pub transfer_incoming_count_total: u64,
    /// Bytes on their way to others.
    pub transfer_outgoing_bytes: i64,
    /// Transfers to others.
    pub transfer_outgoing_count: usize,
    /// Bytes sent to others since the start.
    pub transfer_outgoing_bytes_total: i64,
    /// Transfers to others since the start.
    pub transfer_outgoing_count_total: u64,
    /// Use of values in memory and on disk since the start, if any are spilled:
    /// activity, unit (`bytes`, `count`, `seconds`) and sum.
    pub spill_totals: Vec<(&'static str, &'static str, f64)>,
    /// Longest time between two ticks, in seconds, since these numbers were last
    /// asked for.
    pub tick_duration_max: f64,
    /// Ticks since the start.
    pub tick_count: u64,
}

#[derive(Clone)]
struct Server {
    info: Arc<dyn WorkerInfo>,
    prometheus_namespace: Arc<str>,
    paths: Arc<Vec<String>>,
}

/// All pages of a worker. With a prefix they lie below it; `/health` and
/// `/sitemap.json` answer at the root as well.
pub fn worker_router(info: Arc<dyn WorkerInfo>, options: &WorkerOptions) -> Router {
    let prefix = match options.prefix.trim_matches('/') {
        "" => String::new(),
        path => format!("/{path}"),
    };
    let mut routes: Vec<(String, MethodRouter<Server>)> = Vec::new();
    let enabled = &options.routes;
    if enabled.health {
        routes.push((format!("{prefix}/health"), get(health)));
    }
    if enabled.prometheus {
        routes.push((format!("{prefix}/metrics"), get(prometheus)));
    }
    if enabled.statics {
        routes.push((format!("{prefix}/statics/css/base.css"), get(style)));
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
        prometheus_namespace: options.prometheus_namespace.as_str().into(),
        paths: Arc::new(paths),
    })
}

async fn sitemap(State(server): State<Server>) -> Response {
    axum::Json(json!({"paths": *server.paths})).into_response()
}

async fn prometheus(State(server): State<Server>) -> Answer {
    let metrics = server.info.metrics().await?;
    let text = text(&server.prometheus_namespace, &metrics);
    Ok(plain("text/plain; version=0.0.4", text))
}

fn text(namespace: &str, metrics: &WorkerMetrics) -> String {
    let mut families = Families::new(namespace, "worker");
    families.family("tasks", "Number of tasks at worker.", "gauge");
    for (state, count) in &metrics.tasks {
        families.sample("tasks", &[("state", state)], count);
    }
    families.counter(
        "gc_collection_seconds",
        "Total time spent on garbage collection",
        metrics.gc_collection_seconds_total,
    );
    families.gauge("threads", "Number of worker threads", metrics.threads);
    families.gauge(
        "latency_seconds",
        "Latency of worker connection",
        metrics.latency_seconds,
    );
    let managed = metrics.managed_nbytes.min(metrics.process_nbytes);
    families.family("memory_bytes", "Memory breakdown", "gauge");
    for (kind, nbytes) in [
        ("managed", managed),
        ("unmanaged", metrics.process_nbytes - managed),
        ("spilled", metrics.spilled_nbytes),
    ] {
        families.sample("memory_bytes", &[("type", kind)], nbytes);
    }
    transfers(&mut families, metrics);
    spills(&mut families, metrics);
    families.gauge(
        "tick_duration_maximum_seconds",
        "Maximum tick duration observed since Prometheus last scraped metrics",
        metrics.tick_duration_max,
    );
    families.counter(
        "tick_count",
        "Total number of ticks observed since the server started",
        metrics.tick_count,
    );
    families.into_text()
}

fn transfers(families: &mut Families, metrics: &WorkerMetrics) {
    families.gauge(
        "transfer_incoming_bytes",
        "Total size of open data transfers from other workers",
        metrics.transfer_incoming_bytes,
    );
    families.gauge(
        "transfer_incoming_count",
        "Number of open data transfers from other workers",
        metrics.transfer_incoming_count,
    );
    families.counter(
        "transfer_incoming_count",
        "Total number of data transfers from other workers since the worker was started",
        metrics.transfer_incoming_count_total,
    );
    families.gauge(
        "transfer_outgoing_bytes",
        "Total size of open data transfers to other workers",
        metrics.transfer_outgoing_bytes,
    );
    families.gauge(
        "transfer_outgoing_count",
        "Number of open data transfers to other workers",
        metrics.transfer_outgoing_count,
    );
    families.counter(
        "transfer_outgoing_bytes",
        "Total size of data transfers to other workers since the worker was started (including \
         in-progress and failed transfers)",
        metrics.transfer_outgoing_bytes_total,
    );
    families.counter(
        "transfer_outgoing_count",
        "Total number of data transfers to other workers since the worker was started",
        metrics.transfer_outgoing_count_total,
    );
}

fn spills(families: &mut Families, metrics: &WorkerMetrics) {
    if metrics.spill_totals.is_empty() {
        return;
    }
    for (unit, name, help) in [
        (
            "bytes",
            "spill_bytes_total",
            "Total size of memory and disk accesses caused by managed data since the latest \
             worker restart",
        ),
        (
            "count",
            "spill_count_total",
            "Total number of memory and disk accesses caused by managed data since the latest \
             worker restart",
        ),
        (
            "seconds",
            "spill_time_seconds_total",
            "Total time spent spilling/unspilling since the latest worker restart",
        ),
    ] {
        families.family(name, help, "counter");
        let totals = metrics.spill_totals.iter();
        for (activity, _, sum) in totals.filter(|(_, own, _)| *own == unit) {
            families.sample(name, &[("activity", activity)], sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::info::Error;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    struct Fake(Result<WorkerMetrics, Error>);

    impl WorkerInfo for Fake {
        fn metrics(&self) -> Reply<'_, WorkerMetrics> {
            let metrics = self.0.clone();
            Box::pin(async move { metrics })
        }
    }

    fn metrics() -> WorkerMetrics {
        WorkerMetrics {
            tasks: vec![("memory", 2), ("disk", 3)],
            threads: 4,
            latency_seconds: 0.25,
            process_nbytes: 1000,
            managed_nbytes: 600,
            spilled_nbytes: 70,
            transfer_incoming_count: 1,
            transfer_incoming_count_total: 9,
            spill_totals: vec![
                ("memory-read", "count", 5.0),
                ("disk-write", "bytes", 70.0),
                ("disk-write", "seconds", 0.5),
            ],
            tick_count: 12,
            ..WorkerMetrics::default()
        }
    }

    async fn get(info: Fake, options: &WorkerOptions, path: &str) -> (u16, String) {
        let router = worker_router(Arc::new(info), options);
        let bound = crate::bind(&[(Some("127.0.0.1".to_owned()), 0)]).await;
        let bound = bound.unwrap();
        let address = bound.addresses()[0];
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let stopped = async {
            let _ = stopped.await;
        };
        let serving = tokio::spawn(bound.serve(router, None, stopped));
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        stop.send(()).unwrap();
        serving.await.unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    fn options(prefix: &str) -> WorkerOptions {
        WorkerOptions {
            prefix: prefix.to_owned(),
            prometheus_namespace: "dask".to_owned(),
            ..WorkerOptions::default()
        }
    }

    #[tokio::test]
    async fn metrics_have_stock_names_and_types() {
        let (status, body) = get(Fake(Ok(metrics())), &options(""), "/metrics").await;
        assert_eq!(status, 200);
        for line in [
            "# TYPE dask_worker_tasks gauge",
            "dask_worker_tasks{state=\"memory\"} 2",
            "dask_worker_tasks{state=\"disk\"} 3",
            "# TYPE dask_worker_gc_collection_seconds_total counter",
            "dask_worker_threads 4",
            "dask_worker_latency_seconds 0.25",
            "dask_worker_memory_bytes{type=\"managed\"} 600",
            "dask_worker_memory_bytes{type=\"unmanaged\"} 400",
            "dask_worker_memory_bytes{type=\"spilled\"} 70",
            "dask_worker_transfer_incoming_count 1",
            "# TYPE dask_worker_transfer_incoming_count_total counter",
            "dask_worker_transfer_incoming_count_total 9",
            "dask_worker_transfer_outgoing_bytes_total 0",
            "# TYPE dask_worker_spill_time_seconds_total counter",
            "dask_worker_spill_time_seconds_total{activity=\"disk-write\"} 0.5",
            "dask_worker_spill_bytes_total{activity=\"disk-write\"} 70",
            "dask_worker_spill_count_total{activity=\"memory-read\"} 5",
            "# TYPE dask_worker_tick_duration_maximum_seconds gauge",
            "dask_worker_tick_count_total 12",
        ] {
            assert!(body.lines().any(|own| own == line), "no `{line}` in {body}");
        }
    }

    #[tokio::test]
    async fn a_worker_without_spilling_says_nothing_of_it() {
        let metrics = WorkerMetrics {
            process_nbytes: 10,
            managed_nbytes: 20,
            ..WorkerMetrics::default()
        };
        let (_, body) = get(Fake(Ok(metrics)), &options(""), "/metrics").await;
        assert!(!body.contains("spill_"), "{body}");
        assert!(body.contains("{type=\"managed\"} 10\n"), "{body}");
        assert!(body.contains("{type=\"unmanaged\"} 0\n"), "{body}");
    }

    #[tokio::test]
    async fn pages_lie_below_the_prefix() {
        let page = async |path| get(Fake(Ok(metrics())), &options("/a/b/"), path).await;
        assert_eq!(page("/health").await, (200, "ok".to_owned()));
        assert_eq!(page("/a/b/health").await, (200, "ok".to_owned()));
        assert_eq!(page("/metrics").await.0, 404);
        assert_eq!(page("/a/b/metrics").await.0, 200);
        let (_, sitemap) = page("/sitemap.json").await;
        let expected = "{\"paths\":[\"/a/b/health\",\"/a/b/metrics\",\"/a/b/sitemap.json\",\
                        \"/a/b/statics/css/base.css\",\"/health\",\"/sitemap.json\"]}";
        assert_eq!(sitemap, expected);
    }

    #[tokio::test]
    async fn routes_are_chosen_by_module() {
        let modules = ["distributed.http.health", "my.module"].map(str::to_owned);
        let routes = WorkerRoutes::from_modules(&modules);
        assert_eq!(routes.unknown, ["my.module"]);
        let options = WorkerOptions {
            routes,
            ..options("")
        };
        assert_eq!(get(Fake(Ok(metrics())), &options, "/health").await.0, 200);
        assert_eq!(get(Fake(Ok(metrics())), &options, "/metrics").await.0, 404);
    }

    #[tokio::test]
    async fn a_worker_that_closes_is_unavailable() {
        let (status, _) = get(Fake(Err(Error::Closing)), &options(""), "/metrics").await;
        assert_eq!(status, 503);
    }
}
