//! Workers with our own scheduler, in one process.

use std::sync::Arc;

use oxidask_comm::tls::{Tls, TlsOptions, Version};
use oxidask_comm::{Address, Connection, Options, Scheme};
use oxidask_server::config::Config;
use oxidask_server::options::{
    DashboardOptions, ListenOptions, PythonCommand, SchedulerOptions, Security, TlsSource,
};
use oxidask_server::scheduler;
use oxidask_server::worker::{Handle, StartError};
use oxidask_wire::{Map, Value, map};

use crate::executor::{Toy, deserialized, serialized};
use crate::stub::{LONG, ask, field, keys_field, logs, options, soon, start, text};

struct Cluster {
    scheduler: scheduler::Handle,
    connection: Connection,
    workers: Vec<(Handle, Arc<Toy>)>,
}

impl Cluster {
    async fn start(count: usize) -> Self {
        Self::secured(count, Security::default(), Options::default()).await
    }

    /// Everything with the TLS of `security`, which `connecting` has as well.
    async fn secured(count: usize, security: Security, connecting: Options) -> Self {
        let options = SchedulerOptions {
            listen: vec![ListenOptions {
                host: Some("127.0.0.1".to_owned()),
                port: Some(0),
                protocol: security.cert.as_ref().map(|_| "tls".to_owned()),
                ..ListenOptions::default()
            }],
            contact_address: None,
            security: security.clone(),
            dashboard: DashboardOptions {
                enabled: false,
                addresses: Vec::new(),
                prefix: String::new(),
            },
            scheduler_file: None,
            pid_file: None,
            idle_timeout: None,
            // Nothing here is ever unpickled.
            python: PythonCommand::new("no-such-interpreter"),
            graph_threads: None,
            preload: Vec::new(),
            preload_argv: Vec::new(),
            config: Config::defaults(),
        };
        let scheduler = scheduler::start(&options, logs(), None).await.unwrap();
        let address = Address::parse(scheduler.address(), Scheme::Tcp).unwrap();
        let connection = oxidask_comm::connect(&address, &connecting, LONG)
            .await
            .unwrap();
        let mut cluster = Self {
            scheduler,
            connection,
            workers: Vec::new(),
        };
        for _ in 0..count {
            let toy = Arc::new(Toy::default());
            let mut options = crate::stub::options(cluster.scheduler.address());
            options.security = security.clone();
            let worker = soon(start(options, toy.clone())).await.unwrap();
            cluster.workers.push((worker, toy));
        }
        cluster
    }

    async fn ask(&mut self, op: &str, fields: Map) -> Value {
        ask(&mut self.connection, op, fields).await
    }

    /// Scatters once the workers run, which the scheduler learns a moment after
    /// they have registered.
    async fn scatter(&mut self, data: Map, broadcast: bool) {
        let count = self.workers.len();
        loop {
            let identity = self.ask("identity", Map::new()).await;
            let workers = field(&identity, "workers").as_map().unwrap().clone();
            let running = workers
                .iter()
                .filter(|(_, worker)| text(worker, "status") == "running");
            if running.count() == count {
                break;
            }
            tokio::task::yield_now().await;
        }
        let fields = map! {
            "data" => data,
            "workers" => Value::Nil,
            "client" => "client",
            "broadcast" => broadcast,
            "timeout" => 5.0,
        };
        self.ask("scatter", fields).await;
    }

    /// How many workers have a key.
    async fn holders(&mut self, key: &str) -> usize {
        let who_has = self.ask("who_has", keys_field(&[key])).await;
        let holders = who_has.as_map().unwrap().get(key);
        holders.and_then(Value::as_array).map_or(0, <[_]>::len)
    }
}

#[tokio::test]
async fn data_goes_in_and_out_through_the_scheduler() {
    let mut cluster = Cluster::start(2).await;
    let data = map! { "x" => serialized(1), "y" => serialized(2), "z" => serialized(3) };
    cluster.scatter(data, false).await;
    let reply = cluster.ask("gather", keys_field(&["x", "y", "z"])).await;
    assert_eq!(text(&reply, "status"), "OK");
    let data = field(&reply, "data");
    for (key, number) in [("x", 1), ("y", 2), ("z", 3)] {
        assert_eq!(deserialized(field(data, key)), Some(number));
    }
}

#[tokio::test]
async fn data_is_replicated_and_survives_a_worker_that_retires() {
    let mut cluster = Cluster::start(2).await;
    cluster.scatter(map! { "x" => serialized(1) }, false).await;
    assert_eq!(cluster.holders("x").await, 1);
    let mut fields = keys_field(&["x"]);
    fields.push("n", 2);
    cluster.ask("replicate", fields).await;
    assert_eq!(cluster.holders("x").await, 2);
    let (leaving, _) = cluster.workers.remove(0);
    let fields = map! {
        "workers" => vec![Value::from(leaving.address())],
        "close_workers" => true,
        "remove" => true,
    };
    cluster.ask("retire_workers", fields).await;
    soon(leaving.wait()).await;
    let reply = cluster.ask("gather", keys_field(&["x"])).await;
    assert_eq!(deserialized(field(field(&reply, "data"), "x")), Some(1));
    assert_eq!(cluster.holders("x").await, 1);
}

#[tokio::test]
async fn the_only_data_is_moved_away_from_a_worker_that_leaves() {
    let mut cluster = Cluster::start(2).await;
    cluster.scatter(map! { "x" => serialized(1) }, false).await;
    let who_has = cluster.ask("who_has", keys_field(&["x"])).await;
    let holder = field(&who_has, "x").as_array().unwrap()[0]
        .as_str()
        .unwrap()
        .to_owned();
    let at = cluster
        .workers
        .iter()
        .position(|(worker, _)| worker.address() == holder);
    let (leaving, _) = cluster.workers.remove(at.unwrap());
    soon(leaving.close_gracefully("lifetime")).await;
    assert_eq!(&*soon(leaving.wait()).await, "lifetime");
    let reply = cluster.ask("gather", keys_field(&["x"])).await;
    assert_eq!(deserialized(field(field(&reply, "data"), "x")), Some(1));
}

#[tokio::test]
async fn scattered_data_is_lost_with_its_worker() {
    let mut cluster = Cluster::start(1).await;
    cluster.scatter(map! { "x" => serialized(1) }, false).await;
    let (leaving, toy) = cluster.workers.remove(0);
    leaving.closer()("signal-2");
    soon(leaving.wait()).await;
    assert!(toy.is_closed());
    // The stream is closed, but the scheduler may still be about to see it.
    loop {
        let identity = cluster.ask("identity", Map::new()).await;
        if field(&identity, "workers").as_map().unwrap().is_empty() {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(cluster.holders("x").await, 0);
}

#[tokio::test]
async fn requests_are_broadcast() {
    let mut cluster = Cluster::start(2).await;
    let message = map! { "op" => "identity" };
    let replies = cluster.ask("broadcast", map! { "msg" => message }).await;
    let replies = replies.as_map().unwrap();
    assert_eq!(replies.len(), 2);
    for (address, reply) in replies {
        let known = cluster
            .workers
            .iter()
            .any(|(worker, _)| Some(worker.address()) == address.as_str());
        assert!(known, "{address:?}");
        assert_eq!(text(reply, "type"), "Worker");
    }
}

#[tokio::test]
async fn workers_go_with_their_scheduler_and_join_the_next() {
    let cluster = Cluster::start(1).await;
    let Cluster {
        scheduler,
        mut workers,
        connection: _,
    } = cluster;
    scheduler.closer()("test-over");
    soon(scheduler.wait()).await;
    let (worker, _) = workers.remove(0);
    assert_eq!(&*soon(worker.wait()).await, "scheduler-close");
    let mut next = Cluster::start(1).await;
    let identity = next.ask("identity", Map::new()).await;
    assert_eq!(field(&identity, "workers").as_map().unwrap().len(), 1);
}

#[tokio::test]
async fn a_taken_name_is_refused() {
    let mut cluster = Cluster::start(0).await;
    let toy = Arc::new(Toy::default());
    let mut named = options(cluster.scheduler.address());
    named.name = Some("alice".into());
    let first = soon(start(named.clone(), toy)).await.unwrap();
    let error = soon(start(named, Arc::new(Toy::default())))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("alice"), "{error}");
    let identity = cluster.ask("identity", Map::new()).await;
    assert_eq!(field(&identity, "workers").as_map().unwrap().len(), 1);
    first.closer()("done");
    soon(first.wait()).await;
}

/// A certificate that is its own authority, as `Security.temporary()` makes them.
fn certificate() -> (Security, Options) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(["dask-internal".to_owned()]).unwrap();
    let cert = params.self_signed(&key).unwrap().pem();
    let key = key.serialize_pem();
    let security = Security {
        require_encryption: true,
        ca_file: Some(TlsSource::Pem(cert.clone())),
        cert: Some(TlsSource::Pem(cert.clone())),
        key: Some(TlsSource::Pem(key.clone())),
        ..Security::default()
    };
    let tls = Tls::new(&TlsOptions {
        ca: cert.clone().into_bytes(),
        cert: cert.into_bytes(),
        key: Some(key.into_bytes()),
        ciphers: None,
        min_version: Version::V1_2,
        max_version: Version::V1_3,
    });
    let connecting = Options {
        tls: Some(Arc::new(tls.unwrap())),
        ..Options::default()
    };
    (security, connecting)
}

#[tokio::test]
async fn everything_goes_over_tls() {
    let (security, connecting) = certificate();
    let mut cluster = Cluster::secured(2, security, connecting).await;
    for (worker, _) in &cluster.workers {
        assert!(worker.address().starts_with("tls://127.0.0.1:"));
    }
    // From the scheduler to one worker, and from that one to the other.
    cluster.scatter(map! { "x" => serialized(1) }, true).await;
    assert_eq!(cluster.holders("x").await, 2);
    let reply = cluster.ask("gather", keys_field(&["x"])).await;
    assert_eq!(deserialized(field(field(&reply, "data"), "x")), Some(1));
}

#[tokio::test]
async fn a_worker_without_or_with_another_certificate_does_not_get_in() {
    let (security, connecting) = certificate();
    let mut cluster = Cluster::secured(1, security, connecting).await;
    let address = cluster.scheduler.address().to_owned();
    let plain = options(&address);
    let error = soon(start(plain, Arc::new(Toy::default())))
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(text.ends_with("TLS needs certificates"), "{text}");
    let mut stranger = options(&address);
    stranger.security = certificate().0;
    stranger.death_timeout = Some(std::time::Duration::from_millis(300));
    let error = soon(start(stranger, Arc::new(Toy::default())))
        .await
        .unwrap_err();
    assert!(matches!(error, StartError::DeathTimeout { .. }), "{error}");
    let identity = cluster.ask("identity", Map::new()).await;
    assert_eq!(field(&identity, "workers").as_map().unwrap().len(), 1);
}
