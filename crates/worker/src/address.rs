//! Which peers are on the same host.

/// The host in an address such as `tls://[::1]:80`; every `inproc` address is in
/// this very process. `get_address_host` of distributed.
pub(crate) fn host(address: &str) -> &str {
    let (scheme, location) = address.split_once("://").unwrap_or(("tcp", address));
    if scheme == "inproc" {
        return scheme;
    }
    let location = location.split('/').next().unwrap_or(location);
    if let Some(bracketed) = location.strip_prefix('[') {
        return bracketed.split(']').next().unwrap_or(bracketed);
    }
    match location.rsplit_once(':') {
        Some((host, _)) if !host.contains(':') => host,
        Some(_) | None => location,
    }
}

#[cfg(test)]
mod tests {
    use super::host;

    #[test]
    fn of_every_form() {
        assert_eq!(host("tcp://1.2.3.4:80"), "1.2.3.4");
        assert_eq!(host("1.2.3.4:80"), "1.2.3.4");
        assert_eq!(host("tls://[::1]:80"), "::1");
        assert_eq!(host("tcp://::1"), "::1");
        assert_eq!(host("ws://node-3:80/ws"), "node-3");
        assert_eq!(host("tcp://node-3"), "node-3");
        assert_eq!(
            host("inproc://10.0.0.1/77/1"),
            host("inproc://10.0.0.1/77/2")
        );
    }
}
