//! Which pages may open a WebSocket to the scheduler.

/// Origins from which a browser may open a WebSocket.
///
/// A page of the server itself always may. Others may if they match a pattern
/// of `distributed.scheduler.dashboard.bokeh-application.allow_websocket_origin`:
/// `HOST` or `HOST:PORT`, with `*` for one part of the name or for the port; a
/// pattern without a port means port 80, as in Bokeh. The sole pattern `*`,
/// Dask's default, is made for Bokeh's sockets and opens no other: there stock
/// keeps to its own pages as well.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WebsocketOrigins {
    patterns: Vec<String>,
}

impl WebsocketOrigins {
    /// From the patterns of the configuration.
    #[must_use]
    pub fn new(patterns: &[String]) -> Self {
        Self {
            patterns: patterns
                .iter()
                .map(|pattern| pattern.to_ascii_lowercase())
                .collect(),
        }
    }

    /// Whether a page from `origin` (`http://host:port`) may open a WebSocket at
    /// a server that it calls `host` (the `Host` header). A request without an
    /// origin comes from no browser and may.
    #[must_use]
    pub fn allow(&self, origin: Option<&str>, host: Option<&str>) -> bool {
        let Some(origin) = origin else {
            return true;
        };
        let Some((scheme, location)) = origin.split_once("://") else {
            return false;
        };
        let location = location.to_ascii_lowercase();
        if host.is_some_and(|host| host.eq_ignore_ascii_case(&location)) {
            return true;
        }
        let default_port = if scheme == "https" { "443" } else { "80" };
        let (name, port) = split_port(&location).unwrap_or((&location, default_port));
        self.patterns
            .iter()
            .filter(|pattern| *pattern != "*")
            .any(|pattern| matches(pattern, name, port))
    }
}

fn matches(pattern: &str, name: &str, port: &str) -> bool {
    let (pattern_name, pattern_port) = split_port(pattern).unwrap_or((pattern, "80"));
    let parts: Vec<&str> = name.split('.').collect();
    let patterns: Vec<&str> = pattern_name.split('.').collect();
    let port_fits = pattern_port == "*" || pattern_port == port;
    let name_fits = parts.len() == patterns.len()
        && parts
            .iter()
            .zip(&patterns)
            .all(|(part, pattern)| *pattern == "*" || pattern == part);
    port_fits && name_fits
}

/// Host and port of `host:port`; an IPv6 host has brackets.
fn split_port(location: &str) -> Option<(&str, &str)> {
    let (name, port) = location.rsplit_once(':')?;
    (!port.ends_with(']')).then_some((name, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(patterns: &[&str], origin: Option<&str>) -> bool {
        let patterns: Vec<String> = patterns.iter().map(|text| (*text).to_owned()).collect();
        WebsocketOrigins::new(&patterns).allow(origin, Some("sched:8787"))
    }

    #[test]
    fn own_pages_and_programs_may() {
        assert!(allow(&[], None));
        assert!(allow(&[], Some("http://sched:8787")));
        assert!(allow(&["*"], Some("http://SCHED:8787")));
    }

    #[test]
    fn other_pages_need_a_pattern() {
        assert!(!allow(&[], Some("http://evil.example")));
        assert!(!allow(&["*"], Some("http://evil.example")));
        assert!(!allow(&["a.example"], Some("null")));
        assert!(allow(&["a.example"], Some("http://a.example")));
        assert!(!allow(&["a.example"], Some("http://a.example:8080")));
        assert!(allow(&["a.example:443"], Some("https://A.example")));
        assert!(allow(&["*.example:*"], Some("https://b.example:9")));
        assert!(!allow(&["*.example:*"], Some("https://c.b.example:9")));
    }
}
