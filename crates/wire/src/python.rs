//! Small pieces of Python's behaviour that show on the wire or in texts.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Appends `repr(text)` of a Python str.
pub fn str_repr(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            ' '..='~' => out.push(c),
            c if c.is_ascii() || !is_printable(c) => {
                let code = u32::from(c);
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// Appends `repr(data)` of Python bytes.
pub fn bytes_repr(data: &[u8], out: &mut String) {
    let quote = if data.contains(&b'\'') && !data.contains(&b'"') {
        b'"'
    } else {
        b'\''
    };
    out.push('b');
    out.push(char::from(quote));
    for &byte in data {
        match byte {
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            byte if byte == quote => {
                out.push('\\');
                out.push(char::from(byte));
            }
            b' '..=b'~' => out.push(char::from(byte)),
            byte => {
                let _ = write!(out, "\\x{byte:02x}");
            }
        }
    }
    out.push(char::from(quote));
}

/// Appends `repr(value)` of a Python float.
pub fn float_repr(value: f64, out: &mut String) {
    if value.is_nan() {
        return out.push_str("nan");
    }
    if value.is_infinite() {
        return out.push_str(if value > 0.0 { "inf" } else { "-inf" });
    }
    let scientific = format!("{value:e}");
    let (mantissa, exponent) = scientific
        .split_once('e')
        .expect("`{:e}` writes an exponent");
    let exponent: i32 = exponent.parse().expect("`{:e}` writes a decimal exponent");
    // The thresholds of `float.__repr__`: 1e16 and 0.0001 are the first of their kind.
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        let _ = write!(out, "{mantissa}e{sign}{:02}", exponent.unsigned_abs());
        return;
    }
    let _ = write!(out, "{value}");
    if value.fract() == 0.0 {
        out.push_str(".0");
    }
}

/// `str.isprintable` without the unassigned code points, whose set differs
/// between Unicode versions.
fn is_printable(c: char) -> bool {
    !matches!(u32::from(c),
        0x00..=0x1f | 0x7f..=0xa0 | 0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x890..=0x891
        | 0x8e2 | 0x1680 | 0x180e | 0x2000..=0x200f | 0x2028..=0x202f | 0x205f..=0x206f | 0x3000
        | 0xe000..=0xf8ff | 0xfeff | 0xfff0..=0xfffb | 0xfffe..=0xffff | 0x110bd | 0x110cd
        | 0x13430..=0x13438 | 0x1bca0..=0x1bca3 | 0x1d173..=0x1d17a | 0xe0001..=0xe007f
        | 0xf0000..=0x10ffff)
}

/// `dask.utils.key_split` of a str.
pub fn key_split(key: &str) -> Cow<'_, str> {
    split(key).unwrap_or(Cow::Borrowed("Other"))
}

/// `None` where the Python function runs into an exception.
fn split(key: &str) -> Option<Cow<'_, str>> {
    let first = key.split('-').next()?;
    let mut name = if first.chars().next()?.is_alphabetic() {
        Cow::Borrowed(first)
    } else {
        let part = first.split(',').next()?;
        Cow::Borrowed(part.trim_matches(|c| matches!(c, '_' | '\'' | '(' | ')' | '"')))
    };
    // While nothing was stripped the name is a prefix of the key and needs no copy.
    let mut end = first.len();
    let borrowed = name.len() == first.len();
    for word in key[end..].split('-').skip(1) {
        let alphabetic = !word.is_empty() && word.chars().all(char::is_alphabetic);
        let hexadecimal =
            word.chars().count() == 8 && word.starts_with(|c| ('a'..='f').contains(&c));
        if !alphabetic || hexadecimal {
            break;
        }
        end += 1 + word.len();
        if borrowed {
            name = Cow::Borrowed(&key[..end]);
        } else {
            let name = name.to_mut();
            name.push('-');
            name.push_str(word);
        }
    }
    if is_hash(&name) {
        return Some(Cow::Borrowed("data"));
    }
    if name.chars().next()? == '<' {
        return class_of(&name).map(|class| Cow::Owned(class.to_owned()));
    }
    Some(name)
}

/// `distributed.utils.key_split_group` of a str.
pub fn key_split_group(key: &str) -> Cow<'_, str> {
    if key.is_empty() {
        return Cow::Borrowed("Other");
    }
    if key.starts_with('(') {
        let first = key.split(',').next().unwrap_or_default();
        return Cow::Borrowed(first.trim_matches(|c| matches!(c, '(' | ')' | '"' | '\'')));
    }
    if is_hash(key) {
        return Cow::Borrowed("data");
    }
    if key.starts_with('<') {
        return Cow::Borrowed(class_of(key).unwrap_or("Other"));
    }
    key_split(key)
}

fn is_hash(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| matches!(b, b'a'..=b'f' | b'0'..=b'9'))
}

/// `cls` of `<module.cls object at 0x…>`.
fn class_of(text: &str) -> Option<&str> {
    text.trim_matches(|c| matches!(c, '<' | '>'))
        .split_whitespace()
        .next()?
        .rsplit('.')
        .next()
}
