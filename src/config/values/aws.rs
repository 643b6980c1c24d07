//! What AWS takes, and stores other than AWS: names of roles, buckets, regions, keys and owners, and an object's tags.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use reqwest::Url;

use super::{Parsed, Rule, check, duration};
use crate::batch::LogType;

/// The longest `bucketPath` that leaves room for the rest of the key in S3's 1024 bytes.
const BUCKET_PATH_MAX_BYTES: usize = 973;
/// S3 takes no more in one PutObject.
pub(in crate::config) const OBJECT_MAX_BYTES: u64 = 5 << 30;
/// CloudWatch takes no longer name of a log group.
const LOG_GROUP_MAX_CHARS: usize = 512;
/// S3 takes no more tags on an object.
const OBJECT_TAGS_MAX: usize = 10;
const TAG_NAME_MAX_CHARS: usize = 128;
const TAG_VALUE_MAX_CHARS: usize = 256;

const STORAGE_CLASSES: [&str; 9] = [
    "STANDARD",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER_IR",
    "GLACIER",
    "DEEP_ARCHIVE",
    "REDUCED_REDUNDANCY",
    "EXPRESS_ONEZONE",
];

/// AWS's rules for names, or looser ones where another store is asked, which need not keep them.
pub(in crate::config) struct Rules {
    pub(in crate::config) role_arn: Rule,
    pub(in crate::config) region: Rule,
    pub(in crate::config) bucket_name: Rule,
    pub(in crate::config) kms_key_id: Rule,
    pub(in crate::config) account_id: Rule,
    pub(in crate::config) storage_class: Rule,
}

impl Rules {
    pub(in crate::config) fn of(s3_is_elsewhere: bool, sts_is_elsewhere: bool) -> Rules {
        let rule = |is_elsewhere, at_aws: Rule, elsewhere: Rule| if is_elsewhere { elsewhere } else { at_aws };
        Rules {
            role_arn: rule(sts_is_elsewhere, role_arn, role_arn_elsewhere),
            // AWS's own STS is asked in the bucket's region.
            region: rule(s3_is_elsewhere && sts_is_elsewhere, region, region_elsewhere),
            bucket_name: rule(s3_is_elsewhere, bucket_name, bucket_name_elsewhere),
            kms_key_id: rule(s3_is_elsewhere, kms_key_id, kms_key_id_elsewhere),
            account_id: rule(s3_is_elsewhere, account_id, account_id_elsewhere),
            storage_class: rule(s3_is_elsewhere, storage_class, storage_class_elsewhere),
        }
    }
}

/// The length of a session, as STS takes it.
pub(in crate::config) fn session_duration(value: &str) -> Parsed<Duration> {
    duration(Duration::from_secs(900), Duration::from_secs(43_200))(value)
}

/// `arn:<partition>:iam::<account>:role/<path and name>`. The account may be empty: stores other than AWS have none.
pub(in crate::config) fn role_arn(value: &str) -> Parsed<String> {
    let fields: Vec<_> = value.splitn(6, ':').collect();
    let holds = matches!(fields[..], ["arn", partition, "iam", "", account, role]
        if partition.starts_with("aws")
            && (account.is_empty() || account.len() == 12)
            && account.bytes().all(|byte| byte.is_ascii_digit())
            && role.strip_prefix("role/").is_some_and(|name| !name.is_empty())
            && role.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+=,.@_/-".contains(&byte)));
    check(holds && value.len() <= 2048, value.to_owned(), "the ARN of an IAM role: arn:aws:iam::<account>:role/<name>")
}

/// A role of a store other than AWS: its partition and account are its own affair, as in Ceph's
/// `arn:aws:iam::tenant1:role/S3Access` and Dell ECS's `urn:ecs:iam::namespace1:role/env0`.
pub(in crate::config) fn role_arn_elsewhere(value: &str) -> Parsed<String> {
    let fields: Vec<_> = value.splitn(6, ':').collect();
    let holds = matches!(fields[..], ["arn" | "urn", partition, "iam", _, _, role]
        if !partition.is_empty() && role.strip_prefix("role/").is_some_and(|name| !name.is_empty()))
        && value.bytes().all(|byte| byte.is_ascii_graphic());
    check(holds && value.len() <= 2048, value.to_owned(), "the ARN of a role: arn:aws:iam::<account>:role/<name>")
}

/// A bucket of a store other than AWS, by S3's oldest rules, which many of them keep: `my_bucket` is one.
pub(in crate::config) fn bucket_name_elsewhere(value: &str) -> Parsed<String> {
    let holds = (3..=255).contains(&value.len())
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
        && !value.starts_with('.');
    check(
        holds,
        value.to_owned(),
        "a bucket's name alone: 3 to 255 of letters, digits, -, . and _, no s3:// and no path",
    )
}

/// S3's naming rules for general-purpose buckets.
///
/// # Errors
/// What was expected.
pub fn bucket_name(value: &str) -> Parsed<String> {
    if value.ends_with(".amazonaws.com") || value.ends_with(".amazonaws.com.cn") {
        return Err("a bucket's name alone, not the host's that it is part of".to_owned());
    }
    let end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = value.as_bytes();
    let holds = (3..=63).contains(&bytes.len())
        && bytes.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
        && end(bytes.first())
        && end(bytes.last())
        && ["..", ".-", "-."].iter().all(|odd| !value.contains(odd))
        && value.parse::<IpAddr>().is_err();
    check(holds, value.to_owned(), "a bucket's name alone: 3 to 63 of a-z, 0-9, - and ., no s3:// and no path")
}

/// The shape of a region's name, not a list of regions: there are new ones every year. One that ends in a digit and a
/// letter is a zone's (`eu-west-1a`), which names no endpoint.
pub(in crate::config) fn region(value: &str) -> Parsed<String> {
    let last = value.split('-').skip(2).last().unwrap_or_default();
    let is_zone = last.ends_with(|letter: char| letter.is_ascii_lowercase())
        && last.bytes().rev().nth(1).is_some_and(|digit| digit.is_ascii_digit());
    if is_zone {
        return Err("a region, not one of its zones (the same without the letter at its end)".to_owned());
    }
    let holds = value.starts_with(|first: char| first.is_ascii_lowercase())
        && value.len() <= 32
        && !value.ends_with('-')
        && value.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    check(holds, value.to_owned(), "a region's code, not its name")
}

/// A region of a store other than AWS, as OpenStack's `RegionOne`: it is signed, and has to be a part of a host's name.
/// In the form of AWS's it is held to AWS's letters.
pub(in crate::config) fn region_elsewhere(value: &str) -> Parsed<String> {
    if value.split('-').skip(2).last().is_some_and(|last| last.starts_with(|first: char| first.is_ascii_digit())) {
        return region(value);
    }
    let end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = value.as_bytes();
    let holds = value.len() <= 63
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
        && end(bytes.first())
        && end(bytes.last());
    check(holds, value.to_owned(), "a region's code, as the store has it: letters, digits and -")
}

/// The key prefix, trimmed of `/`.
pub(in crate::config) fn bucket_path(value: &str) -> Parsed<String> {
    let path = value.trim_matches('/');
    let segments = path.is_empty() || path.split('/').all(|segment| !matches!(segment, "" | "." | ".."));
    let holds = segments && path.len() <= BUCKET_PATH_MAX_BYTES && !path.chars().any(char::is_control);
    let expected = format!(
        "a key prefix of at most {BUCKET_PATH_MAX_BYTES} bytes, without empty, . or .. segments or control characters"
    );
    check(holds, path.to_owned(), &expected)
}

/// What goes in front of a log group's name: CloudWatch's characters, and room for the longest log type in its 512.
pub(in crate::config) fn log_group_prefix(value: &str) -> Parsed<String> {
    let most = LOG_GROUP_MAX_CHARS - LogType::ALL.iter().map(|log_type| log_type.as_str().len()).max().unwrap_or(0);
    let holds = value.len() <= most
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'/' | b'#' | b'-'));
    check(holds, value.to_owned(), &format!("at most {most} of letters, digits, ., _, /, # and -"))
}

/// Whether an endpoint is AWS's with the bucket's name in front, as in `https://logs.s3.eu-west-1.amazonaws.com`: a
/// client would put the name there once more. Hosts of other stores may begin with any word.
pub(in crate::config) fn names_bucket(endpoint: &str, bucket: &str) -> bool {
    let url = Url::parse(endpoint).ok();
    let host = url.as_ref().and_then(Url::host_str).unwrap_or_default();
    let is_aws = [".amazonaws.com", ".amazonaws.com.cn"].iter().any(|domain| host.ends_with(domain));
    is_aws && host.strip_prefix(bucket).is_some_and(|rest| rest.starts_with(".s3.") || rest.starts_with(".s3-"))
}

/// The region of an endpoint of AWS's for S3, as in `https://s3.eu-west-1.amazonaws.com`; also of a VPC endpoint's name.
pub(in crate::config) fn region_of_endpoint(endpoint: &str) -> Option<String> {
    let url = Url::parse(endpoint).ok()?;
    let host = url.host_str()?;
    let host = host.strip_suffix(".amazonaws.com").or_else(|| host.strip_suffix(".amazonaws.com.cn"))?;
    let host = host.strip_suffix(".vpce").unwrap_or(host);
    let (service, region) = host.rsplit_once('.').unwrap_or(("", host));
    let region = if service.is_empty() { region.strip_prefix("s3-")? } else { region };
    // `s3.amazonaws.com` has none, and is us-east-1's.
    region.contains('-').then(|| region.to_owned())
}

/// `x-amz-storage-class` of AWS, which refuses every PUT with another.
pub(in crate::config) fn storage_class(value: &str) -> Parsed<String> {
    let nearest = nearest_storage_class(value);
    check(nearest == value, value.to_owned(), &format!("one of {}; nearest is {nearest}", STORAGE_CLASSES.join(", ")))
}

/// The class of AWS that `value` most likely was to be.
pub(in crate::config) fn nearest_storage_class(value: &str) -> &'static str {
    let written = value.to_ascii_uppercase();
    STORAGE_CLASSES.into_iter().min_by_key(|known| strsim::levenshtein(&written, known)).unwrap_or_default()
}

/// `x-amz-storage-class` of another store, which may have classes of its own.
pub(in crate::config) fn storage_class_elsewhere(value: &str) -> Parsed<String> {
    let holds = value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'));
    check(holds, value.to_owned(), "a storage class alone: letters, digits, _, - and .")
}

/// A key's id, ARN or alias in AWS KMS.
pub(in crate::config) fn kms_key_id(value: &str) -> Parsed<String> {
    let is_uuid = value.len() == 36 && value.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    if is_uuid || ["arn:", "alias/", "mrk-"].iter().any(|beginning| value.starts_with(beginning)) {
        return kms_key_id_elsewhere(value);
    }
    Err(format!("a KMS key's id (a UUID, or mrk-…), its ARN, or alias/ and its alias, such as alias/{value}"))
}

/// A key of another store's, which has names of its own.
pub(in crate::config) fn kms_key_id_elsewhere(value: &str) -> Parsed<String> {
    let holds = value.len() <= 2048 && value.bytes().all(|byte| byte.is_ascii_graphic());
    check(holds, value.to_owned(), "a key's id, ARN or alias")
}

/// An AWS account's number.
pub(in crate::config) fn account_id(value: &str) -> Parsed<String> {
    let holds = value.len() == 12 && value.bytes().all(|byte| byte.is_ascii_digit());
    let digits = digits_of_account(value).map(|digits| format!(", without dashes or spaces: {digits}"));
    check(holds, value.to_owned(), &format!("an AWS account's 12 digits{}", digits.unwrap_or_default()))
}

/// An account's number as AWS's pages show it (`1111-2222-3333`), without what sets its digits apart.
pub(in crate::config) fn digits_of_account(value: &str) -> Option<String> {
    let digits: String = value.chars().filter(|character| !matches!(character, '-' | ' ')).collect();
    (digits != value && account_id(&digits).is_ok()).then_some(digits)
}

/// The owner of a bucket of a store other than AWS, as Ceph's `tenant1$user` or the canonical id of a user.
pub(in crate::config) fn account_id_elsewhere(value: &str) -> Parsed<String> {
    let holds = value.len() <= 256 && value.bytes().all(|byte| byte.is_ascii_graphic());
    check(holds, value.to_owned(), "an owner's id, as the store has it, without white space")
}

/// `x-amz-tagging`: `name=value&name=value`, URL-encoded.
pub(in crate::config) fn object_tags(value: &str) -> Parsed<String> {
    let tags: Vec<_> = value.split('&').collect();
    // Bytes that are not UTF-8 are left for S3 to judge.
    let decoded =
        |text: &str| percent_encoding::percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let is_allowed = |c: char| c.is_alphanumeric() || " +-=._:/@\u{fffd}".contains(c);
    let mut names = BTreeSet::new();
    let tag_holds = |tag: &&str| {
        let (name, value) = tag.split_once('=').unwrap_or_default();
        let is_plain = !value.contains('=') && tag.bytes().all(|byte| byte.is_ascii_graphic());
        let (name, value) = (decoded(name), decoded(value));
        let is_short = name.chars().count() <= TAG_NAME_MAX_CHARS && value.chars().count() <= TAG_VALUE_MAX_CHARS;
        let holds = is_plain && is_short && name.chars().chain(value.chars()).all(is_allowed);
        holds && !name.is_empty() && !name.to_ascii_lowercase().starts_with("aws:") && names.insert(name)
    };
    let expected = format!(
        "at most {OBJECT_TAGS_MAX} tags as name=value&name=value, URL-encoded, each name once, none of AWS's own (aws:)"
    );
    check(tags.len() <= OBJECT_TAGS_MAX && tags.iter().all(tag_holds), value.to_owned(), &expected)
}
