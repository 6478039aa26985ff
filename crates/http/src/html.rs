//! Text of pages: escaping, links, tables, and Dask's way to print sizes and times.

use std::fmt::{self, Write as _};

/// Text as it stands in a page: `<`, `&` and quotes are escaped, and characters
/// that XML does not know are replaced.
pub(crate) struct Escaped<'a>(pub(crate) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for next in self.0.chars() {
            match next {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\t' | '\n' | '\r' => f.write_char(next)?,
                '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => f.write_char('\u{fffd}')?,
                _ => f.write_char(next)?,
            }
        }
        Ok(())
    }
}

/// Text as one part of a path.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
                f.write_char(char::from(byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

/// A page being written. Every method escapes what it is given.
pub(crate) struct Page {
    text: String,
}

impl Page {
    /// Begins a page that lies `depth` folders below the root, for relative
    /// links: behind a gateway nobody here knows the whole path.
    pub(crate) fn new(title: &str, depth: usize) -> Self {
        let root = match depth {
            0 => "./".to_owned(),
            _ => "../".repeat(depth),
        };
        // `./statics` would look like an absolute link to stock's own check.
        let root = root.trim_start_matches("./");
        let title = Escaped(title);
        let text = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\" />\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\" />\n\
             <title>{title}</title>\n\
             <link rel=\"stylesheet\" href=\"{root}statics/css/base.css\" />\n\
             </head>\n<body>\n<nav>\n<strong>Dask</strong>\n\
             <a href=\"{root}status\">Status</a>\n\
             <a href=\"{root}info/main/workers.html\">Workers</a>\n\
             <a href=\"{root}info/main/exceptions.html\">Exceptions</a>\n\
             <a href=\"{root}info/main/logs.html\">Logs</a>\n\
             <a href=\"{root}json/index.html\">JSON</a>\n\
             </nav>\n<main>\n<h1>{title}</h1>\n"
        );
        Self { text }
    }

    /// Markup that is known to be well-formed.
    pub(crate) fn raw(&mut self, markup: fmt::Arguments<'_>) {
        self.text
            .write_fmt(markup)
            .expect("writing to a string cannot fail");
    }

    pub(crate) fn heading(&mut self, text: &str) {
        self.raw(format_args!("<h2>{}</h2>\n", Escaped(text)));
    }

    pub(crate) fn paragraph(&mut self, text: &str) {
        self.raw(format_args!("<p>{}</p>\n", Escaped(text)));
    }

    pub(crate) fn link(&mut self, folder: &str, name: &str) {
        self.raw(format_args!("{}", link(folder, name)));
    }

    /// A table; cells are markup.
    pub(crate) fn table(&mut self, columns: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
        self.raw(format_args!("<table>\n<thead><tr>"));
        for column in columns {
            self.raw(format_args!("<th>{}</th>", Escaped(column)));
        }
        self.raw(format_args!("</tr></thead>\n<tbody>\n"));
        for row in rows {
            self.raw(format_args!("<tr>"));
            for cell in row {
                self.raw(format_args!("<td>{cell}</td>"));
            }
            self.raw(format_args!("</tr>\n"));
        }
        self.raw(format_args!("</tbody>\n</table>\n"));
    }

    /// Says that a list was cut.
    pub(crate) fn cut(&mut self, shown: usize, total: usize) {
        if total > shown {
            self.paragraph(&format!("Only the first {shown} are shown."));
        }
    }

    pub(crate) fn finish(mut self) -> String {
        self.text.push_str("</main>\n</body>\n</html>\n");
        self.text
    }
}

/// Markup of text.
pub(crate) fn text(text: &str) -> String {
    Escaped(text).to_string()
}

/// A link to the page of `name` in `folder`, such as `../task/`.
pub(crate) fn link(folder: &str, name: &str) -> String {
    format!(
        "<a href=\"{folder}{}.html\">{}</a>",
        Quoted(name),
        Escaped(name)
    )
}

/// Same as `dask.utils.format_bytes`.
pub(crate) fn format_bytes(nbytes: u64) -> String {
    for (unit, shift) in [
        ("PiB", 50),
        ("TiB", 40),
        ("GiB", 30),
        ("MiB", 20),
        ("kiB", 10),
    ] {
        let factor = (1_u64 << shift) as f64;
        if nbytes as f64 >= factor * 0.9 {
            return format!("{:.2} {unit}", nbytes as f64 / factor);
        }
    }
    format!("{nbytes} B")
}

/// Same as `dask.utils.format_time`.
pub(crate) fn format_time(seconds: f64) -> String {
    let whole = seconds as u64;
    if seconds > 172_800.0 {
        return format!("{}d {}hr", whole / 86_400, whole % 86_400 / 3600);
    }
    if seconds > 7200.0 {
        return format!("{}hr {}m", whole / 3600, whole % 3600 / 60);
    }
    if seconds > 600.0 {
        return format!("{}m {}s", whole / 60, whole % 60);
    }
    if seconds >= 1.0 {
        return format!("{seconds:.2} s");
    }
    if seconds >= 1e-3 {
        return format!("{:.2} ms", seconds * 1e3);
    }
    format!("{:.2} us", seconds * 1e6)
}

/// A moment in UTC, to milliseconds: `2026-11-20 13:00:00.123`.
pub(crate) fn format_timestamp(seconds: f64) -> String {
    let milliseconds = (seconds.max(0.0) * 1e3) as u64;
    let (days, in_day) = (milliseconds / 86_400_000, milliseconds % 86_400_000);
    // Days since 0000-03-01, in eras of 400 years (Howard Hinnant's civil_from_days).
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{:03}",
        in_day / 3_600_000,
        in_day / 60_000 % 60,
        in_day / 1000 % 60,
        in_day % 1000
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_as_dask_prints_them() {
        assert_eq!(format_bytes(0), "0 B");
        assert_eq!(format_bytes(28), "28 B");
        assert_eq!(format_bytes(921), "921 B");
        assert_eq!(format_bytes(922), "0.90 kiB");
        assert_eq!(format_bytes(123_456_789_000), "114.98 GiB");
        assert_eq!(format_time(0.000_123_45), "123.45 us");
        assert_eq!(format_time(0.001_234), "1.23 ms");
        assert_eq!(format_time(1.0), "1.00 s");
        assert_eq!(format_time(1234.567), "20m 34s");
        assert_eq!(format_time(12_345.67), "3hr 25m");
        assert_eq!(format_time(1_234_567.89), "14d 6hr");
    }

    #[test]
    fn timestamps() {
        assert_eq!(format_timestamp(0.0), "1970-01-01 00:00:00.000");
        assert_eq!(format_timestamp(951_782_400.5), "2000-02-29 00:00:00.500");
        assert_eq!(
            format_timestamp(1_795_179_600.125),
            "2026-11-20 13:00:00.125"
        );
    }

    #[test]
    fn what_others_wrote_cannot_become_markup() {
        assert_eq!(
            text("<b a='1'>&\u{1}"),
            "&lt;b a=&#39;1&#39;&gt;&amp;\u{fffd}"
        );
        assert_eq!(
            link("../task/", "('x', 0)/é"),
            "<a href=\"../task/%28%27x%27%2C%200%29%2F%C3%A9.html\">(&#39;x&#39;, 0)/é</a>"
        );
    }
}
