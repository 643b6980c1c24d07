use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::signature::KeyPair;

use super::*;

fn entry() -> ChainEntry {
    ChainEntry {
        key: "logs/env0-audits/2026/11/22/21:04:05_aB3dE.log".into(),
        renamed_from: Some("zzzzz".parse().unwrap()),
        instance: "5f0c2f6e-8d0e-4c57-9a55-0a3d1f6c2b11".into(),
        log_type: LogType::Audits,
        sequence: 12,
        records: 345,
        sha256: Sha256::of(b"body\n"),
        previous: Sha256::of(b"before\n"),
        gaps: Gaps::that_fit(&[9, 3, 7, 8, 3]),
    }
}

fn read_back(
    entry: &ChainEntry,
    metadata: Vec<(&'static str, String)>,
) -> Result<(ChainEntry, Option<Signature>), MetadataError> {
    let metadata = metadata.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    ChainEntry::from_metadata(&entry.key, entry.log_type, &metadata)
}

/// PEM as `openssl genpkey` and `openssl pkey -pubout` write it: PKCS#8 version 1 and SubjectPublicKeyInfo.
fn pems() -> (String, String) {
    let pem =
        |label: &str, der: &[u8]| format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64.encode(der));
    let pkcs8 = Ed25519KeyPair::generate_pkcs8v1(&aws_lc_rs::rand::SystemRandom::new()).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
    let public = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap();
    (pem("PRIVATE KEY", pkcs8.as_ref()), pem("PUBLIC KEY", public.as_ref()))
}

/// A new pair of keys.
pub(crate) fn keys() -> (SigningKey, PublicKey) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key.pem");
    let (private_pem, public_pem) = pems();
    std::fs::write(&path, private_pem).unwrap();
    let signing = SigningKey::from_pem_file(&path).unwrap();
    std::fs::write(&path, public_pem).unwrap();
    (signing, PublicKey::from_pem_file(&path).unwrap())
}

#[test]
fn the_signed_text_is_one_field_a_line() {
    assert_eq!(
        entry().signed_text(),
        "env0-s3-logs/1\nlogs/env0-audits/2026/11/22/21:04:05_aB3dE.log\nzzzzz\n\
         5f0c2f6e-8d0e-4c57-9a55-0a3d1f6c2b11\nenv0-audits\n12\n345\n\
         9e2ec912af5dff2a72300863864fc4da04e81999339d9fac5c7590ba8a3f4e11\n\
         9160d4be34c8695bd172a76c7c7966587ea5a4d991ad22c87b2b91af54aa9ebb\n3,7-9\n"
    );
    let first = ChainEntry { renamed_from: None, gaps: Gaps::default(), previous: Sha256::ZERO, ..entry() };
    let text = first.signed_text();
    assert_eq!(text.lines().count(), 10);
    assert!(text.ends_with(&format!("\n{}\n\n", Sha256::ZERO)), "{text}");
}

#[test]
fn metadata_reads_back_as_it_was_written() {
    let (signing, public) = keys();
    let plain = ChainEntry { renamed_from: None, gaps: Gaps::default(), ..entry() };
    for entry in [entry(), plain] {
        assert_eq!(read_back(&entry, entry.metadata(None)), Ok((entry.clone(), None)));
        let (read, signature) = read_back(&entry, entry.metadata(Some(&signing))).unwrap();
        assert_eq!(read, entry);
        assert!(public.verifies(&read, &signature.unwrap()));
    }
}

#[test]
fn a_signature_holds_for_no_other_entry() {
    let (signing, public) = keys();
    let (entry, signature) = read_back(&entry(), entry().metadata(Some(&signing))).unwrap();
    let signature = signature.unwrap();
    let others = [
        ChainEntry { key: "logs/env0-audits/2026/11/22/21:04:05_aB3dF.log".into(), ..entry.clone() },
        ChainEntry { renamed_from: None, ..entry.clone() },
        ChainEntry { instance: "other".into(), ..entry.clone() },
        ChainEntry { log_type: LogType::Deployments, ..entry.clone() },
        ChainEntry { sequence: 13, ..entry.clone() },
        ChainEntry { records: 346, ..entry.clone() },
        ChainEntry { sha256: Sha256::ZERO, ..entry.clone() },
        ChainEntry { previous: Sha256::ZERO, ..entry.clone() },
        ChainEntry { gaps: Gaps::that_fit(&[3]), ..entry.clone() },
    ];
    assert!(public.verifies(&entry, &signature));
    for other in others {
        assert!(!public.verifies(&other, &signature), "{other:?}");
    }
}

#[test]
fn metadata_in_any_other_form_is_named() {
    let wrong = [
        (INSTANCE, ""),
        (INSTANCE, "a b"),
        (SEQUENCE, "0"),
        (SEQUENCE, "+7"),
        (SEQUENCE, "007"),
        (SEQUENCE, "18446744073709551616"),
        (RECORDS, "-1"),
        (SHA256, "abc"),
        (PREVIOUS, "9E2EC912AF5DFF2A72300863864FC4DA04E81999339D9FAC5C7590BA8A3F4E11"),
        (RENAMED_FROM, "abcd"),
        (GAPS, ""),
        (GAPS, "3,"),
        (GAPS, "3,4"),
        (GAPS, "9-7"),
        (GAPS, "7-7"),
        (GAPS, "7,3"),
        (SIGNATURE, "bm90IGEgc2lnbmF0dXJl"),
    ];
    for (name, value) in wrong {
        let mut metadata = entry().metadata(None);
        metadata.retain(|(kept, _)| *kept != name);
        metadata.push((name, value.to_owned()));
        assert_eq!(read_back(&entry(), metadata), Err(MetadataError::Malformed(name, value.to_owned())));
    }
    for name in [INSTANCE, SEQUENCE, RECORDS, SHA256, PREVIOUS] {
        let mut metadata = entry().metadata(None);
        metadata.retain(|(kept, _)| *kept != name);
        assert_eq!(read_back(&entry(), metadata), Err(MetadataError::Missing(name)));
    }
    assert_eq!(read_back(&entry(), vec![("owner", "them".into())]), Err(MetadataError::Absent));
}

#[test]
fn the_longest_metadata_stays_under_s3s_limit() {
    let every_other: Vec<u64> = (0..1000).map(|index| u64::MAX - 2 * index).collect();
    let longest = ChainEntry {
        instance: "i".repeat(INSTANCE_MAX_BYTES),
        sequence: u64::MAX,
        records: u64::MAX,
        gaps: Gaps::that_fit(&every_other),
        ..entry()
    };
    let bytes: usize = longest.metadata(Some(&keys().0)).iter().map(|(name, value)| name.len() + value.len()).sum();
    assert!(bytes < 2048 - 8 * "x-amz-meta-".len(), "{bytes} bytes");
    assert!(longest.gaps.to_string().len() <= GAPS_MAX_BYTES);
    assert!(longest.gaps.contains(u64::MAX - 1998) && !longest.gaps.contains(u64::MAX));
}

#[test]
fn gaps_that_fill_the_limit_exactly_are_all_named() {
    let sequences: Vec<u64> = (100..).step_by(2).take(GAPS_MAX_BYTES / "100,".len()).collect();
    let gaps = Gaps::that_fit(&sequences);
    assert_eq!(gaps.to_string().len(), GAPS_MAX_BYTES - 1);
    assert_eq!(gaps.to_string().parse(), Ok(gaps.clone()));
    assert_eq!(gaps.ranges().len(), sequences.len());
}

#[test]
fn a_key_of_another_kind_is_refused_with_what_was_expected() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key.pem");
    let missing = SigningKey::from_pem_file(&path).unwrap_err().to_string();
    assert!(missing.contains("key.pem") && missing.contains("openssl genpkey"), "{missing}");
    let ecdsa = rcgen::KeyPair::generate().unwrap();
    std::fs::write(&path, ecdsa.serialize_pem()).unwrap();
    assert!(matches!(SigningKey::from_pem_file(&path), Err(KeyError::NotEd25519 { .. })));
    std::fs::write(&path, ecdsa.public_key_pem()).unwrap();
    assert!(matches!(PublicKey::from_pem_file(&path), Err(KeyError::NotEd25519 { .. })));
    std::fs::write(&path, pems().0).unwrap();
    assert!(matches!(PublicKey::from_pem_file(&path), Err(KeyError::Pem { .. })));
    assert_eq!(format!("{:?}", keys().0), "SigningKey(..)");
}
