//! The certificate of an HTTPS server, made when it starts.

use std::{io, net::IpAddr, sync::Arc};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};

pub(super) struct Tls {
    pub(super) acceptor: TlsAcceptor,
    pub(super) certificate: Certificate,
}

#[derive(Debug)]
pub(super) struct Certificate {
    pub(super) pem: String,
    pub(super) der: Vec<u8>,
}

impl Tls {
    pub(super) fn generate(address: IpAddr) -> io::Result<Self> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let certificate = self_signed(&key, address).map_err(io::Error::other)?;
        let der = certificate.der().clone();
        let config = server_config(der.clone(), &key).map_err(io::Error::other)?;
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            certificate: Certificate { pem: certificate.pem(), der: der.to_vec() },
        })
    }
}

fn self_signed(key: &KeyPair, address: IpAddr) -> Result<rcgen::Certificate, rcgen::Error> {
    let names = ["localhost".to_owned(), address.to_string()];
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    let name = "APSIS One emulator";
    params.distinguished_name.push(DnType::CommonName, name);
    params.self_signed(key)
}

/// The provider is passed in: with two providers in one tree the process default panics.
fn server_config(
    certificate: CertificateDer<'static>,
    key: &KeyPair,
) -> Result<ServerConfig, tokio_rustls::rustls::Error> {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
