//! When a certificate begins and ends: the two fields of X.509 that are of interest here.

use chrono::{DateTime, NaiveDateTime, Utc};

const SEQUENCE: u8 = 0x30;
const EXPLICIT_VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// `notBefore` of a DER certificate (RFC 5280, section 4.1).
pub(super) fn not_before(certificate: &[u8]) -> Option<DateTime<Utc>> {
    time(&mut validity(certificate)?)
}

/// `notAfter` of a DER certificate.
pub(super) fn not_after(certificate: &[u8]) -> Option<DateTime<Utc>> {
    let mut validity = validity(certificate)?;
    skip(&mut validity)?;
    time(&mut validity)
}

fn validity(certificate: &[u8]) -> Option<&[u8]> {
    let (mut certificate, _) = element(certificate, SEQUENCE)?;
    let mut signed = take(&mut certificate, SEQUENCE)?;
    if signed.first() == Some(&EXPLICIT_VERSION) {
        skip(&mut signed)?;
    }
    for _serial_algorithm_issuer in 0..3 {
        skip(&mut signed)?;
    }
    take(&mut signed, SEQUENCE)
}

fn time(validity: &mut &[u8]) -> Option<DateTime<Utc>> {
    let form = *validity.first()?;
    let text = std::str::from_utf8(take(validity, form)?).ok()?;
    let text = match form {
        // Two digits of the year: 1950 to 2049.
        UTC_TIME if text.get(..2)? < "50" => format!("20{text}"),
        UTC_TIME => format!("19{text}"),
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    Some(NaiveDateTime::parse_from_str(&text, "%Y%m%d%H%M%SZ").ok()?.and_utc())
}

/// The content of the first element, which has to be a `tag`, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        // The length itself takes up to 4 bytes.
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length).filter(|_| found == tag)
}

fn take<'a>(bytes: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let (content, rest) = element(bytes, tag)?;
    *bytes = rest;
    Some(content)
}

fn skip(bytes: &mut &[u8]) -> Option<()> {
    let tag = *bytes.first()?;
    take(bytes, tag).map(|_| ())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn certificate_until(year: i32) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = date_time_ymd(year, 3, 4);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn the_end_is_read_in_both_forms_of_time() {
        for (year, expected) in [(2031, "2031-03-04 00:00:00 UTC"), (2076, "2076-03-04 00:00:00 UTC")] {
            assert_eq!(not_after(&certificate_until(year)).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn a_certificate_cut_anywhere_is_no_reason_to_panic() {
        let certificate = certificate_until(2031);
        for length in 0..certificate.len() {
            assert_eq!(not_after(&certificate[..length]), None);
        }
        assert_eq!(not_after(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
