//! `/api/v1`: what deployment tools ask and order by plain HTTP
//! (`distributed.http.scheduler.api`).

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::info::{Error, Retire};
use crate::router::{Server, plain};

/// Why a request failed, in the form of stock's handlers. Stock says the reason in
/// the status line only, which HTTP libraries drop; here it is in the body as well.
pub(crate) struct Failure(StatusCode, String);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = json!({"Error": "Internal Server Error", "reason": self.1});
        (self.0, Json(body)).into_response()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

type Answer = Result<Json<Value>, Failure>;

pub(crate) async fn index() -> Response {
    plain("text/plain; charset=utf-8", "API V1".to_owned())
}

pub(crate) async fn workers(State(server): State<Server>) -> Answer {
    let identity = server.info.identity().await?;
    let workers: Vec<Value> = identity["workers"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(address, worker)| json!({"name": worker["name"], "address": address}))
        .collect();
    Ok(Json(
        json!({"num_workers": workers.len(), "workers": workers}),
    ))
}

pub(crate) async fn adaptive_target(State(server): State<Server>) -> Answer {
    let workers = server.info.desired_workers().await?;
    Ok(Json(json!({"workers": workers})))
}

pub(crate) async fn check_idle(State(server): State<Server>) -> Answer {
    let idle_since = server.info.idle_since().await?;
    Ok(Json(json!({"idle_since": idle_since})))
}

/// Body: `{"n": 2}`, or `{"workers": ["tcp://…", …]}`.
pub(crate) async fn retire_workers(
    State(server): State<Server>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    // Browsers say which page a request comes from, and a page of another site must
    // not give orders in its visitor's name.
    if !server.allows_origin(&headers) {
        let reason = "a page of another site may not retire workers".to_owned();
        return Err(Failure(StatusCode::FORBIDDEN, reason));
    }
    let which =
        which(&body).map_err(|reason| Failure(StatusCode::INTERNAL_SERVER_ERROR, reason))?;
    Ok(Json(server.info.retire_workers(which).await?))
}

fn which(body: &[u8]) -> Result<Retire, String> {
    let expected = r#"expected {"n": 2} or {"workers": ["tcp://...", ...]}"#;
    let body: Value =
        serde_json::from_slice(body).map_err(|error| format!("no JSON: {error}; {expected}"))?;
    let Value::Object(fields) = body else {
        return Err(expected.to_owned());
    };
    match (fields.get("n"), fields.get("workers")) {
        (Some(count), _) if *count != json!(0) && !count.is_null() => count
            .as_u64()
            .map(Retire::Count)
            .ok_or_else(|| format!("n is not a number of workers; {expected}")),
        (_, Some(Value::Array(workers))) => workers
            .iter()
            .map(|worker| worker.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .map(Retire::Named)
            .ok_or_else(|| format!("an entry of workers is no address; {expected}")),
        (_, None) => Ok(Retire::Named(Vec::new())),
        (_, Some(Value::Object(workers))) if workers.is_empty() => Ok(Retire::Named(Vec::new())),
        (_, Some(_)) => Err(format!("workers is not a list; {expected}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_or_addresses() {
        assert_eq!(which(br#"{"n": 2}"#), Ok(Retire::Count(2)));
        let named = Retire::Named(vec!["tcp://10.0.0.3:1".to_owned()]);
        assert_eq!(
            which(br#"{"n": 0, "workers": ["tcp://10.0.0.3:1"]}"#),
            Ok(named)
        );
        assert_eq!(which(b"{}"), Ok(Retire::Named(Vec::new())));
    }

    #[test]
    fn anything_else_is_refused_with_a_reason() {
        for body in [
            &b""[..],
            b"[]",
            br#"{"n": -1}"#,
            br#"{"workers": "x"}"#,
            br#"{"workers": [1]}"#,
        ] {
            let reason = which(body).expect_err("it is no such request");
            assert!(reason.contains("expected {"), "{reason}");
        }
    }
}
