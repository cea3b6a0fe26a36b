//! The names in a certificate's subject.
//!
//! Reads just as much of DER as lies before it. Only asked about certificates whose signature was checked, so they are
//! well-formed; one that is not has no name.

/// DER's tags.
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT: u8 = 0x06;
/// The version, which is there unless it is 1.
const VERSION: u8 = 0xa0;
const UTF8: u8 = 0x0c;
const PRINTABLE: u8 = 0x13;
const IA5: u8 = 0x16;
/// 2.5.4.3.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// 2.5.4.10.
const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];

/// The common name of the certificate's subject; the last one if it has several, as in Go.
pub fn common_name(certificate: &[u8]) -> Option<String> {
    attributes(certificate, COMMON_NAME)?.pop()
}

/// The organizations of the certificate's subject, in their order.
pub fn organizations(certificate: &[u8]) -> Vec<String> {
    attributes(certificate, ORGANIZATION).unwrap_or_default()
}

/// The values of one kind that the subject has. `None` if something cannot be read.
fn attributes(certificate: &[u8], kind: &[u8]) -> Option<Vec<String>> {
    let mut certificate = Der(Der(certificate).expect(SEQUENCE)?);
    let mut signed = Der(certificate.expect(SEQUENCE)?);
    if signed.0.first() == Some(&VERSION) {
        signed.next()?;
    }
    // Serial number, algorithm, issuer, validity.
    for _ in 0..4 {
        signed.next()?;
    }
    let mut subject = Der(signed.expect(SEQUENCE)?);
    let mut values = Vec::new();
    while !subject.0.is_empty() {
        let mut attributes = Der(subject.expect(SET)?);
        while !attributes.0.is_empty() {
            let mut attribute = Der(attributes.expect(SEQUENCE)?);
            let is_wanted = attribute.expect(OBJECT)? == kind;
            let (tag, value) = attribute.next()?;
            if is_wanted && matches!(tag, UTF8 | PRINTABLE | IA5) {
                values.push(std::str::from_utf8(value).ok()?.to_owned());
            }
        }
    }
    Some(values)
}

/// What is left to read.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next element: its tag and its contents.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (contents, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, contents))
    }

    /// The contents of the next element, which must have that tag.
    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, contents)| contents)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn certificate(names: &[(DnType, &str)]) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, name) in names {
            params.distinguished_name.push(kind.clone(), *name);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn the_name_is_found_among_others() {
        let organization = (DnType::OrganizationName, "some organization");
        let long = "n".repeat(200);
        for name in ["root", "Ünïcode", &long] {
            let certificate = certificate(&[organization.clone(), (DnType::CommonName, name)]);
            assert_eq!(common_name(&certificate).as_deref(), Some(name));
        }
        let certificate = certificate(&[organization]);
        assert_eq!(common_name(&certificate), None);
        assert_eq!(organizations(&certificate), ["some organization"]);
    }

    #[test]
    fn what_is_no_certificate_has_no_name() {
        let whole = certificate(&[(DnType::CommonName, "root")]);
        // The name ends long before the signature does.
        for length in 0..100 {
            assert_eq!(common_name(&whole[..length]), None, "{length}");
        }
        for position in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[position] ^= 0x7f;
            // Anything but a panic will do.
            let _ = common_name(&damaged);
        }
    }
}
