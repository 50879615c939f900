//! What a server has to prove before a session goes through TLS: the three strengths of libpq's sslmode, on rustls.
//!
//! rustls checks a chain as browsers do, which is stricter than libpq in one case that PostgreSQL's manual itself
//! suggests: a self-signed certificate that is the server's own and is also named as the authority. That is accepted
//! when it comes from a file the user named (byte for byte the same certificate), because then nothing is left to be
//! vouched for but the name.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::conninfo::{Certificates, Verify};
use crate::error::{Error, Result};

/// The connector for one attempt.
pub(super) fn connector(certificates: &Certificates, verify: Verify) -> Result<MakeRustlsConnect> {
    let provider = Arc::new(ring::default_provider());
    let (chain, named) = match verify {
        Verify::Nothing => (None, Vec::new()),
        Verify::Authority | Verify::Full => {
            let (roots, named) = authorities(certificates.authorities.as_deref())?;
            let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(|error| Error::usage(format!("the trusted certificates cannot be used: {error}")))?;
            (Some(chain), named)
        }
    };
    let verifier = Verifier {
        provider: Arc::clone(&provider),
        verify,
        chain,
        named,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::failure(format!("could not set up TLS: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &certificates.own {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = read_certificates(certificate)?;
            let key_der = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| Error::usage(format!("sslkey {} cannot be read: {error}", key.display())))?;
            builder.with_client_auth_cert(chain, key_der).map_err(|error| {
                Error::usage(format!(
                    "sslcert {} and sslkey {} do not fit: {error}",
                    certificate.display(),
                    key.display()
                ))
            })?
        }
    };
    // sslnegotiation=direct is refused without it; otherwise servers ignore it.
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(MakeRustlsConnect::new(config))
}

/// The trusted authorities, and among them those that a file named.
fn authorities(file: Option<&Path>) -> Result<(RootCertStore, Vec<CertificateDer<'static>>)> {
    let mut roots = RootCertStore::empty();
    if let Some(file) = file {
        let named = read_certificates(file)?;
        let (usable, _) = roots.add_parsable_certificates(named.iter().cloned());
        if usable == 0 {
            return Err(Error::usage(format!(
                "sslrootcert {} holds no usable certificate",
                file.display()
            )));
        }
        return Ok((roots, named));
    }
    let system = rustls_native_certs::load_native_certs();
    let (usable, _) = roots.add_parsable_certificates(system.certs);
    if usable == 0 {
        return Err(Error::usage(
            "this machine trusts no certificate authority, so no server's certificate can be checked",
        )
        .hint("Name the authority with sslrootcert=FILE, or install the package ca-certificates."));
    }
    Ok((roots, Vec::new()))
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let wrong = |error: &dyn std::fmt::Display| {
        Error::usage(format!("certificate file {} cannot be read: {error}", file.display()))
            .hint("It must hold certificates in PEM form (-----BEGIN CERTIFICATE-----).")
    };
    let certificates: Vec<_> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| wrong(&error))?;
    if certificates.is_empty() {
        return Err(wrong(&"it holds no certificate"));
    }
    Ok(certificates)
}

#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    verify: Verify,
    /// Checks chain, dates and name; absent when nothing is to be checked.
    chain: Option<Arc<WebPkiServerVerifier>>,
    /// Certificates from the file of sslrootcert.
    named: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // webpki looks at the name last: whoever comes here has a chain that holds.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.verify == Verify::Authority => Ok(ServerCertVerified::assertion()),
            // The server's own certificate is the authority that the user named; see the head of this file.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(_))) if self.named.contains(end_entity) => {
                if self.verify == Verify::Full {
                    rustls::client::verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                }
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
