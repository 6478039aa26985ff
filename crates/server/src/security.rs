//! TLS contexts from Dask's security options.

use std::sync::Arc;

use oxidask_comm::Error;
use oxidask_comm::tls::{Tls, TlsOptions, Version, load_pem};

use crate::options::{Security, TlsSource, TlsVersion};

/// Reads certificates and keys; `None` if TLS is not configured.
///
/// # Errors
///
/// A file that cannot be read, or certificates that cannot be used.
pub fn load(security: &Security) -> Result<Option<Arc<Tls>>, Error> {
    let (Some(ca), Some(cert)) = (&security.ca_file, &security.cert) else {
        return Ok(None);
    };
    let options = TlsOptions {
        ca: read(ca)?,
        cert: read(cert)?,
        key: security.key.as_ref().map(read).transpose()?,
        ciphers: security.ciphers.clone(),
        min_version: version(security.min_version),
        max_version: security.max_version.map_or(Version::V1_3, version),
    };
    let mut tls = Tls::new(&options)?;
    if let Some(name) = &security.server_name {
        tls = tls.with_server_name(name)?;
    }
    Ok(Some(Arc::new(tls)))
}

fn read(source: &TlsSource) -> Result<Vec<u8>, Error> {
    match source {
        TlsSource::Pem(text) => Ok(text.as_bytes().to_vec()),
        TlsSource::File(path) => load_pem(&path.to_string_lossy()),
    }
}

const fn version(version: TlsVersion) -> Version {
    match version {
        TlsVersion::Tls12 => Version::V1_2,
        TlsVersion::Tls13 => Version::V1_3,
    }
}
