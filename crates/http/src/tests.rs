//! The pages over real sockets, against a scheduler made of constants.

use std::sync::Arc;

use futures_util::StreamExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use crate::info::{
    CallStack, Counts, ErredTask, Metrics, PrefixMetrics, ProcessMetrics, SemaphoreMetrics,
    StreamEvent, Task, Worker, WorkerRow, Workers,
};
use crate::{
    Error, Options, Reply, Retire, Routes, SchedulerInfo, Tls, WebsocketOrigins, bind, router,
};

const WORKER: &str = "tcp://127.0.0.1:40000";

struct Fake {
    /// Where the senders of subscriptions go.
    subscribed: mpsc::UnboundedSender<mpsc::Sender<StreamEvent>>,
}

fn answer<T: Send + 'static>(value: T) -> Reply<'static, T> {
    Box::pin(async move { Ok(value) })
}

fn row() -> WorkerRow {
    WorkerRow {
        address: WORKER.to_owned(),
        name: "a<b".to_owned(),
        nthreads: 2,
        memory_limit: Some(1 << 30),
        dashboard: Some(("127.0.0.1".to_owned(), 41000)),
        ..WorkerRow::default()
    }
}

impl SchedulerInfo for Fake {
    fn counts(&self) -> Reply<'_, Counts> {
        answer(Counts {
            tasks: 3,
            desired_workers: 1,
            ..Counts::default()
        })
    }

    fn identity(&self) -> Reply<'_, serde_json::Value> {
        answer(serde_json::json!({
            "type": "Scheduler",
            "workers": {WORKER: {"type": "Worker", "name": "a<b"}},
        }))
    }

    fn workers(&self) -> Reply<'_, Workers> {
        answer(Workers {
            scheduler: "tcp://127.0.0.1:8786".to_owned(),
            rows: vec![row()],
        })
    }

    fn worker<'a>(&'a self, address: &'a str) -> Reply<'a, Option<Worker>> {
        answer((address == WORKER).then(|| Worker {
            row: row(),
            in_memory: vec![("('x', 0)".to_owned(), 28)],
            resources: vec![("GPU".to_owned(), 0.0, 1.0)],
            ..Worker::default()
        }))
    }

    fn task<'a>(&'a self, key: &'a str) -> Reply<'a, Option<Task>> {
        answer(["('x', 0)", "a/b"].contains(&key).then(|| Task {
            key: key.to_owned(),
            state: "memory".to_owned(),
            nbytes: Some(28),
            exception: Some(("ValueError('<>')".to_owned(), "line".to_owned())),
            who_has: vec![row()],
            ..Task::default()
        }))
    }

    fn exceptions(&self) -> Reply<'_, Vec<ErredTask>> {
        answer(vec![ErredTask {
            key: "f-1".to_owned(),
            workers: vec![WORKER.to_owned()],
            exception: "ZeroDivisionError()".to_owned(),
            traceback: "  File \"<x>\"".to_owned(),
        }])
    }

    fn logs(&self) -> Reply<'_, Vec<String>> {
        answer(vec!["a & b".to_owned()])
    }

    fn worker_logs<'a>(&'a self, address: &'a str) -> Reply<'a, Option<Vec<String>>> {
        answer((address == WORKER).then(Vec::new))
    }

    fn worker_call_stacks<'a>(&'a self, address: &'a str) -> Reply<'a, Option<Vec<CallStack>>> {
        answer((address == WORKER).then(|| {
            vec![CallStack {
                worker: WORKER.to_owned(),
                key: "f-1".to_owned(),
                frames: vec!["f()".to_owned()],
            }]
        }))
    }

    fn task_call_stacks<'a>(&'a self, key: &'a str) -> Reply<'a, Option<Vec<CallStack>>> {
        answer((key == "a b").then(Vec::new))
    }

    fn metrics(&self) -> Reply<'_, Metrics> {
        answer(Metrics {
            clients: 1,
            workers: 1,
            workers_running: 1,
            tasks: vec![("memory", 3)],
            prefixes: vec![PrefixMetrics {
                name: "in\"c".to_owned(),
                state_counts: vec![("memory", 3)],
                ..PrefixMetrics::default()
            }],
            semaphores: vec![SemaphoreMetrics {
                name: "s".to_owned(),
                max_leases: 2,
                average_pending_lease_time: 0.5,
                ..SemaphoreMetrics::default()
            }],
            process: Some(ProcessMetrics {
                resident_nbytes: 4096,
                cpu_seconds: 1.5,
                ..ProcessMetrics::default()
            }),
            ..Metrics::default()
        })
    }

    fn desired_workers(&self) -> Reply<'_, usize> {
        answer(7)
    }

    fn idle_since(&self) -> Reply<'_, Option<f64>> {
        answer(Some(1.5))
    }

    fn retire_workers(&self, which: Retire) -> Reply<'_, serde_json::Value> {
        match which {
            Retire::Count(count) => answer(serde_json::json!({ "count": count })),
            Retire::Named(workers) if workers.is_empty() => {
                Box::pin(async { Err(Error::Refused("nobody to retire".to_owned())) })
            }
            Retire::Named(workers) => answer(serde_json::json!({ "named": workers })),
        }
    }

    fn subscribe(&self) -> Reply<'_, Option<mpsc::Receiver<StreamEvent>>> {
        let (sender, receiver) = mpsc::channel(16);
        self.subscribed.send(sender).unwrap();
        answer(Some(receiver))
    }
}

struct Served {
    port: u16,
    subscribed: mpsc::UnboundedReceiver<mpsc::Sender<StreamEvent>>,
    stop: oneshot::Sender<()>,
    server: tokio::task::JoinHandle<()>,
}

impl Served {
    async fn start(options: Options) -> Self {
        let (sender, subscribed) = mpsc::unbounded_channel();
        let info = Arc::new(Fake { subscribed: sender });
        let bound = bind(&[(Some("127.0.0.1".to_owned()), 0)]).await.unwrap();
        let port = bound.port().unwrap();
        let (stop, stopped) = oneshot::channel();
        let server = tokio::spawn(bound.serve(router(info, options), None, async {
            let _ = stopped.await;
        }));
        Self {
            port,
            subscribed,
            stop,
            server,
        }
    }

    /// Status, headers and body.
    async fn get(&self, path: &str) -> (u16, String, String) {
        self.request("GET", path, "", "").await
    }

    /// `headers` end with line breaks.
    async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> (u16, String, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Length: {length}\r\n{headers}\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_ascii_lowercase(), body.to_owned())
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.server.await.unwrap();
    }
}

fn options(prefix: &str) -> Options {
    Options {
        prefix: prefix.to_owned(),
        dashboard: true,
        prometheus_namespace: "dask".to_owned(),
        ..Options::default()
    }
}

/// Every element is closed in order and every reference is one XML knows.
fn assert_well_formed(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = page;
    while let Some(at) = rest.find('<') {
        let (text, tag) = rest.split_at(at);
        assert!(
            !text.replace("&#39;", "").contains('\''),
            "unescaped quote in {text}"
        );
        let end = tag.find('>').unwrap();
        let inside = &tag[1..end];
        rest = &tag[end + 1..];
        if inside.starts_with('!') || inside.ends_with('/') {
            continue;
        }
        match inside.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "in {page}"),
            None => open.push(inside.split(' ').next().unwrap()),
        }
    }
    assert!(open.is_empty(), "{open:?} not closed");
    assert!(!page.contains("href=\"/"), "absolute link in {page}");
}

#[tokio::test]
async fn pages_are_well_formed_and_have_only_relative_links() {
    let served = Served::start(options("")).await;
    for path in [
        "/info/main/workers.html",
        "/info/main/exceptions.html",
        "/info/main/logs.html",
        "/info/worker/tcp%3A%2F%2F127.0.0.1%3A40000.html",
        "/info/worker/tcp://127.0.0.1:40000.html",
        "/info/task/%28%27x%27%2C%200%29.html",
        "/info/task/%28%27x%27%2C+0%29.html",
        "/info/task/a%2Fb.html",
        "/info/logs/tcp%3A%2F%2F127.0.0.1%3A40000.html",
        "/info/call-stacks/tcp%3A%2F%2F127.0.0.1%3A40000.html",
        "/info/call-stack/a%20b.html",
        "/json/index.html",
        "/status",
        "/proxy/41000/127.0.0.1/status",
    ] {
        let (status, head, body) = served.get(path).await;
        assert_eq!(status, 200, "{path}");
        assert!(head.contains("content-type: text/html"), "{path}");
        assert_well_formed(&body);
    }
    let (_, _, body) = served.get("/info/main/workers.html").await;
    assert!(
        body.contains("a&lt;b") && body.contains("1.00 GiB"),
        "{body}"
    );
    served.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_404() {
    let served = Served::start(Options {
        dashboard: false,
        routes: Routes::from_modules(&["distributed.http.scheduler.info".to_owned()]),
        ..options("")
    })
    .await;
    for path in [
        "/nonesuch",
        "/status",
        "/",
        "/health",
        "/json/counts.json",
        "/info/worker/unknown.html",
        "/info/worker/tcp%3A%2F%2F127.0.0.1%3A40000",
        "/info/task/unknown.html",
        "/info/logs/unknown.html",
        "/info/call-stack/unknown.html",
    ] {
        assert_eq!(served.get(path).await.0, 404, "{path}");
    }
    served.stop().await;
}

#[tokio::test]
async fn machine_readable_pages() {
    let served = Served::start(options("")).await;
    let (status, head, body) = served.get("/health").await;
    assert_eq!((status, body.as_str()), (200, "ok"));
    assert!(head.contains("content-type: text/plain; charset=utf-8"));

    let (_, _, body) = served.get("/json/counts.json").await;
    let counts: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(counts["tasks"], 3);
    assert_eq!(counts.as_object().unwrap().len(), 16);

    let (_, _, body) = served.get("/json/identity.json").await;
    let identity: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(identity["type"], "Scheduler");
    assert_eq!(served.get("/individual-plots.json").await.2, "{}");

    let (_, _, body) = served.get("/sitemap.json").await;
    for path in ["/sitemap.json", "/health", "/statics/css/base.css"] {
        assert!(body.contains(&format!("\"{path}\"")), "{body}");
    }

    let (_, _, body) = served.get("/metrics").await;
    for line in [
        "# TYPE dask_scheduler_clients gauge",
        "dask_scheduler_clients 1",
        "dask_scheduler_workers{state=\"partially_saturated\"} 1",
        "dask_scheduler_tasks{state=\"memory\"} 3",
        "dask_scheduler_tasks{state=\"no-worker\"} 0",
        "dask_scheduler_workers_added_total 0",
        "# TYPE dask_scheduler_gc_collection_seconds_total counter",
        "dask_semaphore_max_leases{name=\"s\"} 2",
        "dask_semaphore_acquire_total{name=\"s\"} 0",
        "dask_semaphore_average_pending_lease_time_s{name=\"s\"} 0.5",
        "# TYPE process_resident_memory_bytes gauge",
        "process_resident_memory_bytes 4096",
        "process_cpu_seconds_total 1.5",
        "dask_scheduler_prefix_state_totals_total{task_prefix_name=\"in\\\"c\",state=\"memory\"} 3",
    ] {
        assert!(body.lines().any(|own| own == line), "{line} not in {body}");
    }
    served.stop().await;
}

#[tokio::test]
async fn api_of_deployment_tools() {
    let served = Served::start(options("")).await;
    let index = served.get("/api/v1").await;
    assert_eq!((index.0, index.2.as_str()), (200, "API V1"));
    for (path, expected) in [
        (
            "get_workers",
            serde_json::json!({"num_workers": 1, "workers": [{"name": "a<b", "address": WORKER}]}),
        ),
        ("adaptive_target", serde_json::json!({"workers": 7})),
        ("check_idle", serde_json::json!({"idle_since": 1.5})),
    ] {
        let (status, head, body) = served.get(&format!("/api/v1/{path}")).await;
        assert_eq!(status, 200, "{path}");
        assert!(head.contains("content-type: application/json"), "{head}");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body, expected, "{path}");
    }
    served.stop().await;
}

#[tokio::test]
async fn retiring_over_http() {
    let served = Served::start(options("")).await;
    let post = async |headers: &str, body: &str| {
        let path = "/api/v1/retire_workers";
        let (status, _, body) = served.request("POST", path, headers, body).await;
        (status, body)
    };
    assert_eq!(
        post("", r#"{"n": 2}"#).await,
        (200, r#"{"count":2}"#.to_owned())
    );
    let named = format!(r#"{{"workers": ["{WORKER}"]}}"#);
    assert_eq!(
        post("Origin: http://x\r\n", &named).await,
        (200, format!(r#"{{"named":["{WORKER}"]}}"#))
    );
    for (body, reason) in [("{}", "nobody to retire"), ("n=2", "no JSON")] {
        let (status, answer) = post("", body).await;
        assert_eq!(status, 500);
        assert!(
            answer.contains("Internal Server Error") && answer.contains(reason),
            "{answer}"
        );
    }
    // A page of another site, in the browser of somebody who can reach the scheduler.
    let (status, _) = post("Origin: http://elsewhere\r\n", &named).await;
    assert_eq!(status, 403);
    assert_eq!(served.get("/api/v1/retire_workers").await.0, 405);
    served.stop().await;
}

#[tokio::test]
async fn a_prefix_goes_before_every_page() {
    let served = Served::start(options("/user/me/")).await;
    assert_eq!(served.get("/user/me/info/main/workers.html").await.0, 200);
    assert_eq!(served.get("/user/me/health").await.0, 200);
    assert_eq!(served.get("/health").await.0, 200);
    assert_eq!(served.get("/info/main/workers.html").await.0, 404);
    for (path, place) in [
        ("/", "user/me/status"),
        ("/user/me", "me/status"),
        ("/user/me/", "status"),
        ("/user/me/info", "info/main/workers.html"),
    ] {
        let (status, head, _) = served.get(path).await;
        assert_eq!(status, 302, "{path}");
        assert!(
            head.lines()
                .any(|line| line == format!("location: {place}")),
            "{head}"
        );
    }
    served.stop().await;
}

#[tokio::test]
async fn a_taken_port_is_replaced_with_a_warning() {
    let host = Some("127.0.0.1".to_owned());
    let first = bind(&[(host.clone(), 0)]).await.unwrap();
    let taken = first.port().unwrap();
    let second = bind(&[(host, taken)]).await.unwrap();
    assert_ne!(second.port(), Some(taken));
    assert!(second.warnings[0].starts_with(&format!("Port {taken} is already in use.\n")));
}

#[tokio::test]
async fn the_event_stream_greets_with_the_workers() {
    use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

    let mut served = Served::start(Options {
        websocket_origins: WebsocketOrigins::new(&["good.invalid".to_owned()]),
        ..options("")
    })
    .await;
    let url = format!("ws://127.0.0.1:{}/eventstream", served.port);
    for (origin, allowed) in [("http://good.invalid", true), ("http://bad.invalid", false)] {
        let mut request = url.as_str().into_client_request().unwrap();
        request
            .headers_mut()
            .insert("Origin", origin.parse().unwrap());
        let connected = tokio_tungstenite::connect_async(request).await;
        assert_eq!(connected.is_ok(), allowed, "{origin}");
    }
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    let first = next_text(&mut socket).await;
    assert_eq!(
        first,
        format!("{{\"name\":\"add_worker\",\"worker\":\"{WORKER}\"}}")
    );
    let event = StreamEvent::AddClient {
        client: "Client-1".to_owned(),
    };
    // The first subscription is that of the allowed page, which is gone.
    served.subscribed.recv().await.unwrap();
    let events = served.subscribed.recv().await.unwrap();
    events.send(event).await.unwrap();
    assert!(next_text(&mut socket).await.contains("Client-1"));
    served.stop().await;
}

type ClientSocket =
    tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<TcpStream>>;

async fn next_text(socket: &mut ClientSocket) -> String {
    let message = socket.next().await.unwrap().unwrap();
    message.into_text().unwrap().to_string()
}

/// A certificate for `localhost` that signs itself, and its key, as PEM.
fn certificate() -> (String, String) {
    let signed = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    (signed.cert.pem(), signed.signing_key.serialize_pem())
}

/// `GET /health` by a client that trusts `cert` alone.
async fn health_over_tls(port: u16, cert: &std::path::Path) -> String {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, ServerName};

    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(cert).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = connector.connect(name, stream).await.unwrap();
    let request = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut response = Vec::new();
    // Servers seldom say goodbye properly; what was read counts.
    let _ = stream.read_to_end(&mut response).await;
    String::from_utf8(response).unwrap()
}

#[tokio::test]
async fn pages_over_tls_are_not_held_up_by_a_silent_peer() {
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = certificate();
    let separate = (
        folder.path().join("cert.pem"),
        folder.path().join("key.pem"),
    );
    let combined = folder.path().join("both.pem");
    std::fs::write(&separate.0, &cert).unwrap();
    std::fs::write(&separate.1, &key).unwrap();
    std::fs::write(&combined, format!("{key}{cert}")).unwrap();
    assert!(
        Tls::from_files(&separate.0, None).is_err(),
        "there is no key"
    );

    for tls in [
        Tls::from_files(&separate.0, Some(&separate.1)).unwrap(),
        Tls::from_files(&combined, None).unwrap(),
    ] {
        let (subscribed, _) = mpsc::unbounded_channel();
        let router = router(Arc::new(Fake { subscribed }), options(""));
        let bound = bind(&[(Some("127.0.0.1".to_owned()), 0)]).await.unwrap();
        let port = bound.port().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(bound.serve(router, Some(tls), async {
            let _ = stopped.await;
        }));
        let silent = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let response = health_over_tls(port, &separate.0).await;
        assert!(response.ends_with("ok"), "{response}");
        drop((silent, stop));
        server.await.unwrap();
    }
}
