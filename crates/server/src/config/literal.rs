//! Python literals, as `ast.literal_eval` reads them, and the JSON that
//! `json.dumps` writes, which differs from standard JSON by `Infinity` and `NaN`.

use super::value::{Map, Value};

/// Depth at which Python's own parser gives up.
const DEPTH_MAX: u32 = 200;

/// The value of a `DASK_*` environment variable: a Python literal, one of the
/// words `none`, `null`, `true`, `false` in any case, or else the text itself.
///
/// Same as `interpret_value` in `dask.config`, except that complex numbers and
/// `...` stay text.
#[must_use]
pub(super) fn interpret(text: &str) -> Value {
    if let Some(value) = python_literal(text) {
        return value;
    }
    match text.to_lowercase().as_str() {
        "none" | "null" => Value::Null,
        "false" => Value::Bool(false),
        "true" => Value::Bool(true),
        _ => Value::Str(text.to_owned()),
    }
}

/// Reads a Python literal; `None` where Python would see a syntax error or
/// something that is no literal.
pub(super) fn python_literal(text: &str) -> Option<Value> {
    let mut parser = Parser::new(text.trim_start_matches([' ', '\t']), Dialect::Python);
    let value = parser.top_level()?;
    parser.at_end().then_some(value)
}

/// Reads JSON as Python's `json` module writes it.
pub(super) fn python_json(text: &str) -> Option<Value> {
    let mut parser = Parser::new(text, Dialect::Json);
    parser.skip_space();
    let value = parser.value(0)?;
    parser.at_end().then_some(value)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    Python,
    Json,
}

struct Parser<'a> {
    rest: &'a str,
    dialect: Dialect,
    /// Within brackets line breaks and comments are space.
    brackets: u32,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str, dialect: Dialect) -> Self {
        Self {
            rest: text,
            dialect,
            brackets: 0,
        }
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn eat(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn bump(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.rest = &self.rest[next.len_utf8()..];
        Some(next)
    }

    fn skip_space(&mut self) {
        loop {
            match self.peek() {
                Some(' ' | '\t' | '\x0c') => {}
                Some('\n' | '\r') if self.brackets > 0 || self.dialect == Dialect::Json => {}
                Some('#') if self.brackets > 0 && self.dialect == Dialect::Python => {
                    let end = self.rest.find('\n').unwrap_or(self.rest.len());
                    self.rest = &self.rest[end..];
                    continue;
                }
                Some(_) | None => return,
            }
            self.bump();
        }
    }

    /// Nothing but space, line breaks and a comment may follow.
    fn at_end(&mut self) -> bool {
        self.brackets = 1;
        self.skip_space();
        self.rest.is_empty()
    }

    /// A value, or a tuple without parentheses.
    fn top_level(&mut self) -> Option<Value> {
        self.skip_space();
        let first = self.value(0)?;
        self.skip_space();
        if !self.rest.starts_with(',') {
            return Some(first);
        }
        let mut items = vec![first];
        while self.eat(",") {
            self.skip_space();
            if matches!(self.peek(), None | Some('#' | '\n' | '\r')) {
                break;
            }
            items.push(self.value(0)?);
            self.skip_space();
        }
        Some(Value::List(items))
    }

    fn value(&mut self, depth: u32) -> Option<Value> {
        if depth > DEPTH_MAX {
            return None;
        }
        match self.peek()? {
            '[' => self.sequence(depth, '[', "]"),
            '(' if self.dialect == Dialect::Python => self.sequence(depth, '(', ")"),
            '{' => self.map_or_set(depth),
            '"' | '\'' => self.string(),
            '0'..='9' | '.' => self.number(),
            sign @ ('+' | '-') => {
                self.bump();
                if self.dialect == Dialect::Python {
                    self.skip_space();
                }
                let value = self.signed_operand(depth)?;
                negate(value, sign == '-')
            }
            first if first.is_alphabetic() || first == '_' => self.word(),
            _ => None,
        }
    }

    /// What may follow a sign: a number, also in parentheses, but no second sign.
    fn signed_operand(&mut self, depth: u32) -> Option<Value> {
        match self.peek()? {
            '0'..='9' | '.' => self.number(),
            '(' if self.dialect == Dialect::Python => {
                self.bump();
                self.brackets += 1;
                self.skip_space();
                if depth > DEPTH_MAX {
                    return None;
                }
                let value = self.signed_operand(depth + 1)?;
                self.skip_space();
                self.brackets -= 1;
                self.eat(")").then_some(value)
            }
            'I' if self.dialect == Dialect::Json => self.word(),
            _ => None,
        }
    }

    fn word(&mut self) -> Option<Value> {
        let end = self
            .rest
            .find(|next: char| !next.is_alphanumeric() && next != '_')
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        if self.dialect == Dialect::Json {
            self.rest = rest;
            return match word {
                "null" => Some(Value::Null),
                "true" => Some(Value::Bool(true)),
                "false" => Some(Value::Bool(false)),
                "Infinity" => Some(Value::Float(f64::INFINITY)),
                "NaN" => Some(Value::Float(f64::NAN)),
                _ => None,
            };
        }
        if rest.starts_with(['"', '\'']) {
            return self.string();
        }
        self.rest = rest;
        match word {
            "None" => Some(Value::Null),
            "True" => Some(Value::Bool(true)),
            "False" => Some(Value::Bool(false)),
            "set" => {
                self.skip_space();
                if !self.eat("(") {
                    return None;
                }
                self.brackets += 1;
                self.skip_space();
                self.brackets -= 1;
                self.eat(")").then(|| Value::List(Vec::new()))
            }
            _ => None,
        }
    }

    fn sequence(&mut self, depth: u32, open: char, close: &str) -> Option<Value> {
        self.bump();
        self.brackets += 1;
        let mut items = Vec::new();
        let mut has_comma = false;
        loop {
            self.skip_space();
            if self.eat(close) {
                break;
            }
            if !items.is_empty() && !has_comma {
                return None;
            }
            items.push(self.value(depth + 1)?);
            self.skip_space();
            has_comma = self.eat(",");
        }
        self.brackets -= 1;
        if open == '(' && items.len() == 1 && !has_comma {
            return items.pop();
        }
        Some(Value::List(items))
    }

    fn map_or_set(&mut self, depth: u32) -> Option<Value> {
        self.bump();
        self.brackets += 1;
        let mut map = Map::new();
        let mut items = Vec::new();
        let mut has_comma = true;
        loop {
            self.skip_space();
            if self.eat("}") {
                break;
            }
            if !has_comma {
                return None;
            }
            let key = self.value(depth + 1)?;
            self.skip_space();
            if items.is_empty() && self.eat(":") {
                self.skip_space();
                let value = self.value(depth + 1)?;
                map.insert(key.into_key(), value);
                self.skip_space();
            } else if map.is_empty() && self.dialect == Dialect::Python {
                items.push(key);
            } else {
                return None;
            }
            has_comma = self.eat(",");
        }
        self.brackets -= 1;
        if items.is_empty() {
            Some(Value::Map(map))
        } else {
            Some(Value::List(items))
        }
    }

    fn number(&mut self) -> Option<Value> {
        let end = number_end(self.rest);
        let (token, rest) = self.rest.split_at(end);
        if rest.starts_with(|next: char| next.is_alphanumeric() || next == '_' || next == '.') {
            return None;
        }
        self.rest = rest;
        let digits = remove_underscores(token)?;
        let lower = digits.to_ascii_lowercase();
        for (prefix, radix) in [("0x", 16), ("0o", 8), ("0b", 2)] {
            if let Some(digits) = lower.strip_prefix(prefix) {
                return integer(digits, radix);
            }
        }
        if lower.contains(['.', 'e']) {
            return lower.parse().ok().map(Value::Float);
        }
        // Python 3 refuses leading zeros other than in zero itself.
        if lower.len() > 1 && lower.starts_with('0') && lower.bytes().any(|digit| digit != b'0') {
            return None;
        }
        integer(&lower, 10)
    }

    /// One string or several written one after the other.
    fn string(&mut self) -> Option<Value> {
        let mut text = String::new();
        let mut bytes = None;
        loop {
            let is_bytes = self.string_part(&mut text)?;
            if *bytes.get_or_insert(is_bytes) != is_bytes {
                return None;
            }
            if self.dialect == Dialect::Json {
                break;
            }
            self.skip_space();
            let quote = self
                .rest
                .trim_start_matches(|next: char| next.is_ascii_alphabetic());
            if self.rest.len() - quote.len() > 2 || !quote.starts_with(['"', '\'']) {
                break;
            }
        }
        Some(Value::Str(text))
    }

    /// Reads one string literal into `text`; says whether it is bytes.
    fn string_part(&mut self, text: &mut String) -> Option<bool> {
        let mut raw = false;
        let mut is_bytes = false;
        let prefix_end = self.rest.find(['"', '\''])?;
        let prefix = self.rest[..prefix_end].to_ascii_lowercase();
        match prefix.as_str() {
            "" | "u" => {}
            "r" => raw = true,
            "b" => is_bytes = true,
            "br" | "rb" => {
                raw = true;
                is_bytes = true;
            }
            _ => return None,
        }
        self.rest = &self.rest[prefix_end..];
        let quote = self.bump()?;
        if self.dialect == Dialect::Json && quote != '"' {
            return None;
        }
        let mut end = quote.to_string();
        let triple = end.repeat(2);
        let is_triple = self.dialect == Dialect::Python && self.eat(&triple);
        if is_triple {
            end = end.repeat(3);
        }
        loop {
            if self.eat(&end) {
                return Some(is_bytes);
            }
            match self.bump()? {
                '\n' | '\r' if !is_triple => return None,
                '\\' if raw => {
                    text.push('\\');
                    text.push(self.bump()?);
                }
                '\\' => self.escape(text)?,
                next if is_bytes && !next.is_ascii() => return None,
                next => text.push(next),
            }
        }
    }

    fn escape(&mut self, text: &mut String) -> Option<()> {
        let next = self.bump()?;
        let simple = match (next, self.dialect) {
            ('\\' | '"', _) => next,
            ('n', _) => '\n',
            ('r', _) => '\r',
            ('t', _) => '\t',
            ('b', _) => '\x08',
            ('f', _) => '\x0c',
            ('/', Dialect::Json) => '/',
            ('u', Dialect::Json) => return self.json_code_point(text),
            ('\'', Dialect::Python) => '\'',
            ('a', Dialect::Python) => '\x07',
            ('v', Dialect::Python) => '\x0b',
            ('\n', Dialect::Python) => return Some(()),
            ('x', Dialect::Python) => char::from_u32(self.hex(2)?)?,
            ('u', Dialect::Python) => char::from_u32(self.hex(4)?)?,
            ('U', Dialect::Python) => char::from_u32(self.hex(8)?)?,
            ('N', Dialect::Python) | (_, Dialect::Json) => return None,
            ('0'..='7', Dialect::Python) => {
                let mut code = next.to_digit(8)?;
                for _ in 0..2 {
                    let Some(digit) = self.peek().and_then(|digit| digit.to_digit(8)) else {
                        break;
                    };
                    self.bump();
                    code = code * 8 + digit;
                }
                char::from_u32(code)?
            }
            (other, Dialect::Python) => {
                text.push('\\');
                other
            }
        };
        text.push(simple);
        Some(())
    }

    fn json_code_point(&mut self, text: &mut String) -> Option<()> {
        let first = self.hex(4)?;
        let code = if (0xd800..0xdc00).contains(&first) && self.eat("\\u") {
            let second = self.hex(4)?;
            0x10000 + ((first - 0xd800) << 10) + second.checked_sub(0xdc00)?
        } else {
            first
        };
        text.push(char::from_u32(code)?);
        Some(())
    }

    fn hex(&mut self, count: usize) -> Option<u32> {
        let digits = self.rest.get(..count)?;
        let valid = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        self.rest = &self.rest[count..];
        if valid {
            u32::from_str_radix(digits, 16).ok()
        } else {
            None
        }
    }
}

/// Length of the number that `text` begins with.
fn number_end(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut end = 0;
    if bytes.len() > 1
        && bytes[0] == b'0'
        && bytes[1].is_ascii_alphabetic()
        && !bytes[1].eq_ignore_ascii_case(&b'e')
    {
        end = 2;
        while end < bytes.len() && (bytes[end].is_ascii_hexdigit() || bytes[end] == b'_') {
            end += 1;
        }
        return end;
    }
    let digits = |mut at: usize| {
        while at < bytes.len() && (bytes[at].is_ascii_digit() || bytes[at] == b'_') {
            at += 1;
        }
        at
    };
    end = digits(end);
    if bytes.get(end) == Some(&b'.') {
        end = digits(end + 1);
    }
    if bytes
        .get(end)
        .is_some_and(|byte| byte.eq_ignore_ascii_case(&b'e'))
    {
        let mut exponent = end + 1;
        if matches!(bytes.get(exponent), Some(b'+' | b'-')) {
            exponent += 1;
        }
        if bytes.get(exponent).is_some_and(u8::is_ascii_digit) {
            end = digits(exponent);
        }
    }
    end
}

/// Underscores may stand between two digits, or after a radix prefix.
fn remove_underscores(token: &str) -> Option<String> {
    let bytes = token.as_bytes();
    for (index, byte) in bytes.iter().enumerate() {
        if *byte != b'_' {
            continue;
        }
        let before = index.checked_sub(1).map(|at| bytes[at]);
        let after = bytes.get(index + 1);
        let after_prefix = index == 2 && bytes[0] == b'0' && bytes[1].is_ascii_alphabetic();
        let between = before.is_some_and(|byte| byte.is_ascii_hexdigit()) || after_prefix;
        if !between || !after.is_some_and(u8::is_ascii_hexdigit) {
            return None;
        }
    }
    Some(token.replace('_', ""))
}

fn integer(digits: &str, radix: u32) -> Option<Value> {
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    match i64::from_str_radix(digits, radix) {
        Ok(value) => Some(Value::Int(value)),
        Err(_) if radix == 10 => digits.parse().ok().map(Value::Float),
        Err(_) => u128::from_str_radix(digits, radix)
            .ok()
            .map(|value| Value::Float(value as f64)),
    }
}

fn negate(value: Value, negative: bool) -> Option<Value> {
    match value {
        Value::Int(number) if negative => Some(Value::Int(-number)),
        Value::Float(number) if negative => Some(Value::Float(-number)),
        Value::Int(_) | Value::Float(_) => Some(value),
        Value::Null | Value::Bool(_) | Value::Str(_) | Value::List(_) | Value::Map(_) => None,
    }
}
