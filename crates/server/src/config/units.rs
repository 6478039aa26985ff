//! Durations and sizes with units, as `dask.utils` reads them.

use super::value::Value;

const SECONDS: [(&str, f64); 24] = [
    ("s", 1.0),
    ("ms", 1e-3),
    ("us", 1e-6),
    ("ns", 1e-9),
    ("m", 60.0),
    ("h", 3600.0),
    ("d", 86_400.0),
    ("w", 604_800.0),
    ("second", 1.0),
    ("minute", 60.0),
    ("hour", 3600.0),
    ("day", 86_400.0),
    ("week", 604_800.0),
    ("millisecond", 1e-3),
    ("microsecond", 1e-6),
    ("nanosecond", 1e-9),
    ("seconds", 1.0),
    ("minutes", 60.0),
    ("hours", 3600.0),
    ("days", 86_400.0),
    ("weeks", 604_800.0),
    ("milliseconds", 1e-3),
    ("microseconds", 1e-6),
    ("nanoseconds", 1e-9),
];

const BYTES: [(&str, f64); 22] = [
    ("", 1.0),
    ("b", 1.0),
    ("kb", 1e3),
    ("mb", 1e6),
    ("gb", 1e9),
    ("tb", 1e12),
    ("pb", 1e15),
    ("k", 1e3),
    ("m", 1e6),
    ("g", 1e9),
    ("t", 1e12),
    ("p", 1e15),
    ("kib", 1024.0),
    ("mib", 1_048_576.0),
    ("gib", 1_073_741_824.0),
    ("tib", 1_099_511_627_776.0),
    ("pib", 1_125_899_906_842_624.0),
    ("ki", 1024.0),
    ("mi", 1_048_576.0),
    ("gi", 1_073_741_824.0),
    ("ti", 1_099_511_627_776.0),
    ("pi", 1_125_899_906_842_624.0),
];

/// Bytes with a unit for people, such as `1.50 GiB`. Same as `dask.utils.format_bytes`.
#[must_use]
pub fn format_bytes(nbytes: u64) -> String {
    for (unit, shift) in [
        ("PiB", 50),
        ("TiB", 40),
        ("GiB", 30),
        ("MiB", 20),
        ("kiB", 10),
    ] {
        let size = (1_u64 << shift) as f64;
        if nbytes as f64 >= size * 0.9 {
            return format!("{:.2} {unit}", nbytes as f64 / size);
        }
    }
    format!("{nbytes} B")
}

/// Seconds in a duration such as `3s`, `1.5 hours` or `20`; a number without a
/// unit is taken in `default_unit`. Same as `dask.utils.parse_timedelta`.
///
/// # Errors
///
/// Text that says what is wrong with the value.
pub fn parse_timedelta(value: &Value, default_unit: &str) -> Result<f64, String> {
    let text = match value {
        Value::Int(number) => number.to_string(),
        Value::Float(number) => python_float(*number),
        Value::Str(text) => text.replace(' ', ""),
        Value::Null | Value::Bool(_) | Value::List(_) | Value::Map(_) => {
            return Err("expected a duration such as '30s'".to_owned());
        }
    };
    let Some(first) = text.chars().next() else {
        return Err("expected a duration such as '30s'".to_owned());
    };
    let text = if first.is_ascii_digit() {
        text
    } else {
        format!("1{text}")
    };
    let (number, unit) = split_unit(&text);
    let unit = if unit.is_empty() { default_unit } else { unit };
    let number = parse_float(number)
        .ok_or_else(|| format!("`{number}` is no number; expected a duration such as '30s'"))?;
    let lower = unit.to_lowercase();
    let factor = SECONDS.iter().find(|(name, _)| *name == lower);
    let Some((_, factor)) = factor else {
        let valid: Vec<&str> = SECONDS.iter().map(|(name, _)| *name).collect();
        return Err(format!(
            "invalid time unit `{unit}`; valid units are {}",
            valid.join(", ")
        ));
    };
    Ok(number * factor)
}

/// Bytes in a size such as `100 MB`, `1kiB` or `5`. Same as `dask.utils.parse_bytes`.
///
/// # Errors
///
/// Text that says what is wrong with the value.
pub fn parse_bytes(value: &Value) -> Result<i128, String> {
    let text = match value {
        Value::Bool(flag) => return Ok(i128::from(*flag)),
        Value::Int(number) => return Ok(i128::from(*number)),
        Value::Float(number) if number.is_finite() => return Ok(*number as i128),
        Value::Str(text) => text.replace(' ', ""),
        Value::Null | Value::Float(_) | Value::List(_) | Value::Map(_) => {
            return Err("expected a size such as '100 MB'".to_owned());
        }
    };
    let text = if text.chars().any(|next| next.is_ascii_digit()) {
        text
    } else {
        format!("1{text}")
    };
    let (number, unit) = split_unit(&text);
    let lower = unit.to_lowercase();
    let number = parse_float(number)
        .filter(|number| number.is_finite())
        .ok_or_else(|| format!("could not interpret `{number}` as a number"))?;
    let Some((_, factor)) = BYTES.iter().find(|(name, _)| *name == lower) else {
        return Err(format!("could not interpret `{unit}` as a byte unit"));
    };
    Ok((number * factor) as i128)
}

/// The number and the letters at its end.
fn split_unit(text: &str) -> (&str, &str) {
    let number = text.trim_end_matches(char::is_alphabetic);
    text.split_at(number.len())
}

/// `float(text)` in Python: underscores between digits are allowed.
pub(super) fn parse_float(text: &str) -> Option<f64> {
    let bytes = text.as_bytes();
    for (index, byte) in bytes.iter().enumerate() {
        let is_digit = |at: Option<usize>| {
            at.and_then(|at| bytes.get(at))
                .is_some_and(u8::is_ascii_digit)
        };
        if *byte == b'_' && !(is_digit(index.checked_sub(1)) && is_digit(Some(index + 1))) {
            return None;
        }
    }
    text.replace('_', "").trim().parse().ok()
}

/// `str(number)` in Python, as far as reading it back is concerned.
fn python_float(number: f64) -> String {
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    if number.is_nan() {
        return "nan".to_owned();
    }
    format!("{number:?}")
}
