//! HTTP pages and APIs of a scheduler or a worker, on its dashboard port.
//!
//! ```text
//!  browser, probe, Prometheus ──► router ──► SchedulerInfo (asks the scheduler) ──► page, JSON, metrics
//! ```
//!
//! Paths are those of stock Dask: `/health`, `/info/…`, `/json/…`, `/metrics`,
//! `/eventstream`, `/api/v1/…`, `/sitemap.json`. Nothing here knows the scheduler; it answers
//! through [`SchedulerInfo`]. A worker has fewer pages and answers through [`WorkerInfo`].

pub mod info;

mod api;
mod eventstream;
mod html;
mod metrics;
mod origins;
mod pages;
mod router;
mod serve;
mod worker;

#[cfg(test)]
mod tests;

pub use info::{Error, Reply, Retire, SchedulerInfo};
pub use origins::WebsocketOrigins;
pub use router::{Options, Routes, router};
pub use serve::{BindError, Bound, Tls, bind};
pub use worker::{WorkerInfo, WorkerMetrics, WorkerOptions, WorkerRoutes, worker_router};
