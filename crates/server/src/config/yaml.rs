//! YAML as PyYAML's `safe_load` reads it.
//!
//! PyYAML speaks YAML 1.1, where `on` and `yes` are booleans, `010` is eight and
//! `1e3` is text. The events come from a YAML parser; what a plain scalar means
//! is decided here by PyYAML's rules.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};

use super::value::{Map, Value};

/// Nodes that one file may expand to through aliases. Aliases to aliases can
/// grow a small file without end; no real configuration comes near.
const NODE_COUNT_MAX: usize = 1_000_000;

/// Nesting that one file may have.
const DEPTH_MAX: usize = 200;

/// Reads the first document of `text`; an empty one is [`Value::Null`].
///
/// # Errors
///
/// Text that says where and why the file is not understood.
pub(super) fn load(text: &str) -> Result<Value, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut loader = Loader {
        parser: Parser::new_from_str(text),
        anchors: HashMap::new(),
        node_count: 0,
    };
    loader.document()
}

struct Loader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: HashMap<usize, Value>,
    node_count: usize,
}

impl<'a> Loader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), String> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("unexpected end of the file".to_owned()),
        }
    }

    fn document(&mut self) -> Result<Value, String> {
        let mut value = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamStart | Event::Nothing | Event::DocumentEnd => {}
                Event::StreamEnd => return Ok(value.unwrap_or(Value::Null)),
                Event::DocumentStart(_) if value.is_some() => {
                    return Err(format!(
                        "expected a single document, but found another one {}",
                        place(&span)
                    ));
                }
                Event::DocumentStart(_) => {
                    let (event, span) = self.next()?;
                    value = Some(self.node(event, &span, 0)?);
                }
                Event::Alias(_)
                | Event::Scalar(..)
                | Event::SequenceStart(..)
                | Event::SequenceEnd
                | Event::MappingStart(..)
                | Event::MappingEnd => {
                    return Err(format!("unexpected content {}", place(&span)));
                }
            }
        }
    }

    fn node(&mut self, event: Event<'a>, span: &Span, depth: usize) -> Result<Value, String> {
        self.count(1)?;
        if depth > DEPTH_MAX {
            return Err(format!(
                "nested deeper than {DEPTH_MAX} levels {}",
                place(span)
            ));
        }
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar(&text, style, tag.as_deref())
                    .map_err(|reason| format!("{reason} {}", place(span)))?;
                (anchor, value)
            }
            Event::SequenceStart(anchor, _) => (anchor, Value::List(self.sequence(depth)?)),
            Event::MappingStart(anchor, _) => (anchor, Value::Map(self.mapping(depth)?)),
            Event::Alias(id) => {
                let value = self.anchors.get(&id).cloned();
                let value =
                    value.ok_or_else(|| format!("alias to a node around it {}", place(span)))?;
                self.count(size(&value))?;
                return Ok(value);
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => return Err(format!("expected a value {}", place(span))),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, value.clone());
        }
        Ok(value)
    }

    fn sequence(&mut self, depth: usize) -> Result<Vec<Value>, String> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(items);
            }
            items.push(self.node(event, &span, depth + 1)?);
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Map, String> {
        let mut own = Map::new();
        let mut merged = Map::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                break;
            }
            let is_merge = matches!(
                &event,
                Event::Scalar(text, ScalarStyle::Plain, _, None) if text == "<<"
            );
            let key = self.node(event, &span, depth + 1)?;
            let (event, span) = self.next()?;
            let value = self.node(event, &span, depth + 1)?;
            if is_merge {
                merge(&mut merged, value).map_err(|reason| format!("{reason} {}", place(&span)))?;
            } else {
                own.insert(key.into_key(), value);
            }
        }
        // What is merged in stands before the map's own keys and yields to them.
        for (key, value) in own {
            merged.insert(key, value);
        }
        Ok(merged)
    }

    fn count(&mut self, nodes: usize) -> Result<(), String> {
        self.node_count += nodes;
        if self.node_count > NODE_COUNT_MAX {
            return Err(format!("more than {NODE_COUNT_MAX} values"));
        }
        Ok(())
    }
}

/// `<<: {…}` or `<<: [{…}, …]`, where earlier maps win.
fn merge(into: &mut Map, value: Value) -> Result<(), &'static str> {
    match value {
        Value::Map(map) => {
            for (key, value) in map {
                into.entry(key).or_insert(value);
            }
            Ok(())
        }
        Value::List(items) => {
            for item in items {
                merge(into, item)?;
            }
            Ok(())
        }
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Str(_) => {
            Err("expected a map or a list of maps to merge")
        }
    }
}

fn size(value: &Value) -> usize {
    match value {
        Value::List(items) => items.iter().map(size).sum::<usize>() + 1,
        Value::Map(map) => map.values().map(size).sum::<usize>() + 1,
        Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Str(_) => 1,
    }
}

fn place(span: &Span) -> String {
    format!(
        "in line {}, column {}",
        span.start.line(),
        span.start.col() + 1
    )
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    let Some(tag) = tag else {
        if style == ScalarStyle::Plain {
            return Ok(plain(text));
        }
        return Ok(Value::Str(text.to_owned()));
    };
    let as_text = || Ok(Value::Str(text.to_owned()));
    if !tag.is_yaml_core_schema() {
        // For PyYAML a bare `!` is no tag, and takes the quotes off as well.
        if tag.handle.is_empty() && tag.suffix == "!" {
            return Ok(plain(text));
        }
        return Err(format!("unknown tag `{}{}`", tag.handle, tag.suffix));
    }
    let value = plain(text);
    let fits = match tag.suffix.as_str() {
        "str" | "binary" | "timestamp" => return as_text(),
        "null" => return Ok(Value::Null),
        "bool" => matches!(value, Value::Bool(_)),
        "int" => matches!(value, Value::Int(_)),
        "float" => {
            let number = match value {
                Value::Int(number) => Some(number as f64),
                Value::Float(number) => Some(number),
                Value::Null | Value::Bool(_) | Value::Str(_) | Value::List(_) | Value::Map(_) => {
                    text.replace('_', "").parse().ok()
                }
            };
            return number
                .map(Value::Float)
                .ok_or_else(|| format!("`{text}` is no float"));
        }
        _ => return Err(format!("unknown tag `!!{}`", tag.suffix)),
    };
    if fits {
        Ok(value)
    } else {
        Err(format!("`{text}` is no {}", tag.suffix))
    }
}

/// What an unquoted scalar means: the implicit resolvers of PyYAML.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Value::Bool(true);
        }
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    integer(text)
        .or_else(|| float(text))
        .unwrap_or_else(|| Value::Str(text.to_owned()))
}

fn integer(text: &str) -> Option<Value> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let negative = text.starts_with('-');
    let first = unsigned.bytes().next()?;
    if !first.is_ascii_digit() {
        return None;
    }
    let digits = |from: &str, radix: u32| {
        let clean = from.replace('_', "");
        let valid = !clean.is_empty() && clean.chars().all(|digit| digit.is_digit(radix));
        valid.then(|| from_digits(&clean, radix)).flatten()
    };
    let magnitude = if let Some(rest) = unsigned.strip_prefix("0b") {
        digits(rest, 2)?
    } else if let Some(rest) = unsigned.strip_prefix("0x") {
        digits(rest, 16)?
    } else if unsigned == "0" {
        0.0.into()
    } else if let Some(rest) = unsigned.strip_prefix('0') {
        digits(rest, 8)?
    } else if unsigned.contains(':') {
        Number::Int(i128::from(sexagesimal(unsigned)?))
    } else {
        digits(unsigned, 10)?
    };
    Some(magnitude.into_value(negative))
}

/// An integer, or its nearest float beyond 64 bits.
enum Number {
    Int(i128),
    Float(f64),
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        if value == 0.0 {
            Self::Int(0)
        } else {
            Self::Float(value)
        }
    }
}

impl Number {
    fn into_value(self, negative: bool) -> Value {
        match self {
            Self::Int(number) => {
                let signed = if negative { -number } else { number };
                i64::try_from(signed).map_or(Value::Float(signed as f64), Value::Int)
            }
            Self::Float(number) => Value::Float(if negative { -number } else { number }),
        }
    }
}

fn from_digits(digits: &str, radix: u32) -> Option<Number> {
    match i128::from_str_radix(digits, radix) {
        Ok(number) => Some(Number::Int(number)),
        Err(_) if radix == 10 => digits.parse().ok().map(Number::Float),
        Err(_) => Some(Number::Float(f64::INFINITY)),
    }
}

/// `1:30:00`, base 60.
fn sexagesimal(text: &str) -> Option<i64> {
    let mut total: i64 = 0;
    for (index, part) in text.split(':').enumerate() {
        let part = part.replace('_', "");
        let number: i64 = part.parse().ok()?;
        let digits_only = part.bytes().all(|digit| digit.is_ascii_digit());
        if !digits_only || (index > 0 && (number > 59 || part.len() > 2)) {
            return None;
        }
        total = total.checked_mul(60)?.checked_add(number)?;
    }
    Some(total)
}

fn float(text: &str) -> Option<Value> {
    match text {
        ".nan" | ".NaN" | ".NAN" => return Some(Value::Float(f64::NAN)),
        _ => {}
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let sign = if text.starts_with('-') { -1.0 } else { 1.0 };
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        return Some(Value::Float(sign * f64::INFINITY));
    }
    // Without a point it is no float, and an exponent needs its sign.
    let (whole, fraction) = unsigned.split_once('.')?;
    if let Some((leading, minutes)) = whole.rsplit_once(':') {
        let seconds: f64 = format!("{minutes}.{}", fraction.replace('_', ""))
            .parse()
            .ok()?;
        let total = sexagesimal(whole)? - minutes.parse::<i64>().ok()?;
        let valid = !leading.is_empty()
            && fraction
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'_');
        return valid.then(|| Value::Float(sign * (total as f64 + seconds)));
    }
    let (fraction, exponent) = match fraction.find(['e', 'E']) {
        Some(at) => (&fraction[..at], &fraction[at + 1..]),
        None => (fraction, "+0"),
    };
    let is_number = |part: &str| {
        part.bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'_')
    };
    let starts_with_digit = |part: &str| part.starts_with(|first: char| first.is_ascii_digit());
    let valid_mantissa = if whole.is_empty() {
        starts_with_digit(fraction) && unsigned.len() == text.len()
    } else {
        starts_with_digit(whole)
    };
    let valid_exponent = exponent.strip_prefix(['+', '-']).is_some_and(|digits| {
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    });
    if !valid_mantissa || !valid_exponent || !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let number: f64 = format!("{whole}.{fraction}e{exponent}")
        .replace('_', "")
        .parse()
        .ok()?;
    Some(Value::Float(sign * number))
}
