//! Against `testdata/config.json`, which dask itself wrote (`testdata/generate.py`).

use serde_json::Value as Json;

use super::*;

const TABLE: &str = include_str!("testdata/config.json");

fn table(name: &str) -> Vec<Json> {
    let table: Json = serde_json::from_str(TABLE).unwrap();
    table[name].as_array().unwrap().clone()
}

/// The value that a cell of the table stands for.
fn value(cell: &Json) -> Value {
    match cell {
        Json::Null => Value::Null,
        Json::Bool(flag) => Value::Bool(*flag),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::Int(number),
            None => Value::Float(number.as_f64().unwrap()),
        },
        Json::String(text) => Value::Str(text.clone()),
        Json::Array(items) => Value::List(items.iter().map(value).collect()),
        Json::Object(map) => match map.get("$float") {
            Some(text) => Value::Float(text.as_str().unwrap().parse().unwrap()),
            None => Value::Map(
                map.iter()
                    .map(|(key, cell)| (key.clone(), value(cell)))
                    .collect(),
            ),
        },
    }
}

/// Equal, NaN included, and with the sign of zero.
fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Float(left), Value::Float(right)) => {
            left.to_bits() == right.to_bits() || (left.is_nan() && right.is_nan())
        }
        (Value::List(left), Value::List(right)) => {
            left.len() == right.len()
                && left
                    .iter()
                    .zip(right)
                    .all(|(left, right)| same(left, right))
        }
        (Value::Map(left), Value::Map(right)) => {
            left.len() == right.len()
                && left
                    .iter()
                    .all(|(key, left)| right.get(key).is_some_and(|right| same(left, right)))
        }
        (left, right) => left == right,
    }
}

/// Inputs at which we differ from the table; `ours` gives `None` for an error.
fn differences(name: &str, ours: impl Fn(&Json) -> Option<Value>) -> Vec<String> {
    let mut differing = Vec::new();
    for row in table(name) {
        let (input, outcome) = (&row[0], &row[1]);
        let stock = outcome.get("value").map(value);
        let ours = ours(input);
        let equal = match (&stock, &ours) {
            (Some(stock), Some(ours)) => same(stock, ours),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if !equal {
            eprintln!("{input}: dask {stock:?}, ours {ours:?}");
            differing.push(
                input
                    .as_str()
                    .map_or_else(|| input.to_string(), str::to_owned),
            );
        }
    }
    differing
}

const NONE: [&str; 0] = [];

#[test]
fn environment_values_are_python_literals() {
    let found = differences("literals", |text| {
        Some(literal::interpret(text.as_str().unwrap()))
    });
    // An ellipsis is no configuration value, so it stays text.
    assert_eq!(found, ["..."]);
}

#[test]
fn yaml_is_read_as_pyyaml_reads_it() {
    let found = differences("yaml", |text| yaml::load(text.as_str().unwrap()).ok());
    // Dates stay text, and three things that PyYAML refuses are read.
    assert_eq!(found, ["k: 2001-01-01", "k: <<", "k: =", "\ta: 1\n"]);
}

#[test]
fn durations_are_those_of_dask() {
    let found = differences("timedeltas", |input| {
        let input = value(input);
        if input == Value::Null {
            return Some(input);
        }
        let seconds = parse_timedelta(&input, "seconds").ok()?;
        // Dask gives an integer where it can, and fails to test infinity for it.
        if !seconds.is_finite() {
            return None;
        }
        Some(if seconds.fract() == 0.0 && seconds.abs() < 1e18 {
            Value::Int(seconds as i64)
        } else {
            Value::Float(seconds)
        })
    });
    assert_eq!(found, NONE);
}

#[test]
fn sizes_are_those_of_dask() {
    let found = differences("bytes", |input| {
        let size = parse_bytes(&value(input)).ok()?;
        Some(Value::Int(i64::try_from(size).unwrap()))
    });
    assert_eq!(found, NONE);
}

#[test]
fn files_and_variables_merge_as_in_dask() {
    let folder = tempfile::tempdir().unwrap();
    let table: Json = serde_json::from_str(TABLE).unwrap();
    for (name, text) in table["files"].as_object().unwrap() {
        std::fs::write(folder.path().join(name), text.as_str().unwrap()).unwrap();
    }
    let mut found = String::new();
    for case in table["merges"].as_array().unwrap() {
        let mut variables = vec![("DASK_ROOT_CONFIG".to_owned(), "/nonexistent".to_owned())];
        if case["files"] == true {
            let folder = folder.path().to_str().unwrap().to_owned();
            variables.push(("DASK_CONFIG".to_owned(), folder));
        }
        for (name, text) in case["variables"].as_object().unwrap() {
            variables.push((name.clone(), text.as_str().unwrap().to_owned()));
        }
        let config = Config::load(&Inputs {
            variables,
            ..Inputs::default()
        })
        .unwrap();
        for (key, outcome) in case["values"].as_object().unwrap() {
            let stock = outcome.get("value").map(value);
            let ours = config.get(key);
            let equal = match (&stock, ours) {
                (Some(stock), Some(ours)) => same(stock, ours),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
            if !equal {
                found.push_str(&format!(
                    "{key} with {case}: dask {stock:?}, ours {ours:?}\n"
                ));
            }
        }
    }
    assert_eq!(found, "");
}

fn from_variables(variables: &[(&str, &str)]) -> Config {
    let variables = variables
        .iter()
        .chain(&[("DASK_ROOT_CONFIG", "/nonexistent")])
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    Config::load(&Inputs {
        variables,
        ..Inputs::default()
    })
    .unwrap()
}

#[test]
fn every_default_is_usable() {
    let server = Config::defaults().server().unwrap();
    assert_eq!(server.connect_timeout, Duration::from_secs(30));
    assert_eq!(server.worker_ttl, Some(Duration::from_secs(300)));
    assert_eq!(server.shard_nbytes, 64 << 20);
    assert_eq!(server.idle_timeout, None);
}

#[test]
fn a_wrong_value_is_reported_with_its_origin() {
    let config = from_variables(&[("DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL", "5 foos")]);
    let error = config.server().unwrap_err().to_string();
    assert!(
        error.starts_with(
            "invalid value '5 foos' for `distributed.scheduler.worker-ttl` in the environment \
             variable `DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL`: invalid time unit `foos`"
        ),
        "{error}"
    );

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("own.yaml");
    std::fs::write(&file, "log-length: many\n").unwrap();
    let config = from_variables(&[("DASK_CONFIG", file.to_str().unwrap())]);
    assert_eq!(
        config.server().unwrap_err().to_string(),
        format!(
            "invalid value 'many' for `distributed.admin.log-length` in `{}`: expected an integer \
             of at least 0",
            file.display()
        )
    );
}

#[test]
fn malformed_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("own.yaml");
    for text in ["- 1\n", "a: [1\n", "5\n"] {
        std::fs::write(&file, text).unwrap();
        let variables = [("DASK_CONFIG", file.to_str().unwrap())]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let error = Config::load(&Inputs {
            variables: variables.to_vec(),
            ..Inputs::default()
        })
        .unwrap_err();
        assert!(
            error.to_string().contains("own.yaml` is malformed"),
            "{error}"
        );
    }
}

#[test]
fn the_command_line_has_the_last_word() {
    let config = from_variables(&[("DASK_DISTRIBUTED__SCHEDULER__IDLE_TIMEOUT", "1h")]);
    let config = config.with(
        "--idle-timeout",
        &[(
            "distributed.scheduler.idle-timeout",
            Value::Str("5 foos".to_owned()),
        )],
    );
    let error = config.server().unwrap_err().to_string();
    assert!(error.contains("in the option `--idle-timeout`"), "{error}");
}

#[test]
fn deprecated_keys_warn_unless_overridden() {
    let config = from_variables(&[("DASK_UCX__TCP", "True")]);
    assert_eq!(
        config.warnings().len(),
        0,
        "the environment is renamed when it is read"
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("old.yaml");
    std::fs::write(&file, "ucx:\n  tcp: true\n").unwrap();
    let path = file.to_str().unwrap();
    assert_eq!(from_variables(&[("DASK_CONFIG", path)]).warnings().len(), 1);
    let overridden = [
        ("DASK_CONFIG", path),
        ("DASK_DISTRIBUTED__UCX__TCP", "False"),
    ];
    assert_eq!(from_variables(&overridden).warnings().len(), 0);
}

#[test]
fn security_prefers_the_command_line() {
    let config = from_variables(&[
        ("DASK_DISTRIBUTED__COMM__TLS__CA_FILE", "/ca.pem"),
        ("DASK_DISTRIBUTED__COMM__TLS__SCHEDULER__CERT", "/cert.pem"),
        ("DASK_DISTRIBUTED__COMM__TLS__MIN_VERSION", "1.3"),
    ]);
    let security = config.security(None, None, None).unwrap();
    assert!(
        !security.require_encryption,
        "files in the configuration require nothing"
    );
    assert!(security.has_tls());
    let own = crate::options::TlsSource::from_text("/own.pem");
    let security = config.security(None, Some(own.clone()), None).unwrap();
    assert!(security.require_encryption);
    assert_eq!(security.cert, Some(own));
    assert_eq!(security.min_version, crate::options::TlsVersion::Tls13);
    let wrong = from_variables(&[("DASK_DISTRIBUTED__COMM__TLS__MIN_VERSION", "1.1")]);
    assert!(wrong.security(None, None, None).is_err());
}

#[test]
fn a_worker_has_files_of_its_own() {
    let config = from_variables(&[
        ("DASK_DISTRIBUTED__COMM__TLS__CA_FILE", "/ca.pem"),
        ("DASK_DISTRIBUTED__COMM__TLS__SCHEDULER__CERT", "/cert.pem"),
        ("DASK_DISTRIBUTED__COMM__TLS__WORKER__CERT", "/worker.pem"),
        ("DASK_DISTRIBUTED__COMM__TLS__WORKER__KEY", "/worker.key"),
    ]);
    let file = |path| Some(crate::options::TlsSource::from_text(path));
    let security = config.worker_security(None, None, None).unwrap();
    assert_eq!(security.ca_file, file("/ca.pem"));
    assert_eq!(security.cert, file("/worker.pem"));
    assert_eq!(security.key, file("/worker.key"));
    let security = config.security(None, None, None).unwrap();
    assert_eq!((security.cert, security.key), (file("/cert.pem"), None));
}
