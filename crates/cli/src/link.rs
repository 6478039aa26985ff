//! The dashboard's link: `distributed.dashboard.link`.

/// Fills `{scheme}`, `{host}`, `{port}` and `{ENVIRONMENT_VARIABLE}` into the
/// template, as Python's `str.format` does; conversions and formats are left out.
///
/// # Errors
///
/// The name that stands for nothing.
pub(crate) fn format(
    template: &str,
    known: &[(&str, &str)],
    environment: impl Fn(&str) -> Option<String>,
) -> Result<String, String> {
    let mut link = String::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        link.push_str(&rest[..at]);
        let doubled = &rest[at..];
        if doubled.starts_with("{{") || doubled.starts_with("}}") {
            link.push_str(&doubled[..1]);
            rest = &doubled[2..];
            continue;
        }
        let (field, after) = doubled[1..]
            .split_once('}')
            .ok_or_else(|| doubled.to_owned())?;
        let name = field.split(['!', ':']).next().unwrap_or_default();
        let value = known
            .iter()
            .find(|(own, _)| *own == name)
            .map(|(_, value)| (*value).to_owned())
            .or_else(|| environment(name))
            .ok_or_else(|| name.to_owned())?;
        link.push_str(&value);
        rest = after;
    }
    link.push_str(rest);
    Ok(link)
}

/// The host in an address such as `tcp://[::1]:8786`, without its brackets.
pub(crate) fn host(address: &str) -> &str {
    let location = address
        .split_once("://")
        .map_or(address, |(_, location)| location);
    let location = location.split('/').next().unwrap_or(location);
    let host = location.rsplit_once(':').map_or(location, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formatted(template: &str) -> Result<String, String> {
        let known = [("scheme", "http"), ("host", "10.0.0.1"), ("port", "8787")];
        format(template, &known, |name| {
            (name == "USER").then(|| "me".to_owned())
        })
    }

    #[test]
    fn templates() {
        assert_eq!(
            formatted("{scheme}://{host}:{port}/status").unwrap(),
            "http://10.0.0.1:8787/status"
        );
        assert_eq!(
            formatted("/user/{USER}/proxy/{port:d}/{{x}}").unwrap(),
            "/user/me/proxy/8787/{x}"
        );
        assert_eq!(formatted("{JUPYTERHUB}").unwrap_err(), "JUPYTERHUB");
        assert!(formatted("{open").is_err());
    }

    #[test]
    fn hosts() {
        assert_eq!(host("tcp://10.0.0.1:8786"), "10.0.0.1");
        assert_eq!(host("tls://[::1]:8786"), "::1");
        assert_eq!(host("inproc://10.0.0.1/4711/1"), "10.0.0.1");
    }
}
