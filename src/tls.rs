//! Whom TLS trusts, and by which crypto provider.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject},
};
use tower::BoxError;

use crate::BuildError;

/// These certificates: PEM, one or more.
pub(crate) fn roots_in(pem: &[u8]) -> Result<RootCertStore, BuildError> {
    let wrong = |cause: BoxError| BuildError::Certificate { cause: Some(cause) };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| wrong(error.into()))?;
        roots.add(certificate).map_err(|error| wrong(error.into()))?;
    }
    if roots.is_empty() {
        return Err(BuildError::Certificate { cause: None });
    }
    Ok(roots)
}

/// The platform's, beside these. Reads them anew.
pub(crate) fn with_platform_roots(mut roots: RootCertStore) -> Result<RootCertStore, BuildError> {
    let mut platform = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(platform.certs);
    if roots.is_empty() {
        let cause = platform.errors.pop().map(Into::into);
        return Err(BuildError::RootCertificates { cause });
    }
    Ok(roots)
}

pub(crate) fn client_config(roots: RootCertStore) -> ClientConfig {
    // The provider is passed in: a tree with two of them has no default, and asking for it panics.
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("aws-lc-rs supports the default versions of TLS")
        .with_root_certificates(roots)
        .with_no_client_auth()
}
