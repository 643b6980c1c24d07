//! The variables of CloudWatch Logs.

use super::*;

pub(super) const CLOUDWATCH: [(&str, &str); 2] = [
    ("ENV0_CLOUDWATCH_ROLE_ARN", "arn:aws:iam::111122223333:role/cloudwatch"),
    ("ENV0_CLOUDWATCH_AWS_REGION", "eu-west-1"),
];

#[test]
fn cloudwatch_is_on_with_its_role_and_region_and_refused_with_one_of_them() {
    assert!(accepted(&[]).cloudwatch.is_none());
    let on = accepted(&CLOUDWATCH).cloudwatch.unwrap();
    assert_eq!((on.role_arn.as_str(), on.aws_region.as_str()), (CLOUDWATCH[0].1, "eu-west-1"));
    assert_eq!((on.session_duration.as_secs(), on.group_prefix.as_str(), on.endpoint_url), (3600, "", None));
    for (given, missing) in [(CLOUDWATCH[0], CLOUDWATCH[1].0), (CLOUDWATCH[1], CLOUDWATCH[0].0)] {
        let error = refused(&[given]);
        assert!(error.starts_with(&format!("{missing}: not set, and needed beside {}", given.0)), "{error}");
    }
    let elsewhere = refused(&[CLOUDWATCH[0], ("ENV0_CLOUDWATCH_AWS_REGION", "cn-north-1")]);
    assert!(elsewhere.contains("where STS doesn't know ENV0_CLOUDWATCH_ROLE_ARN, a role of aws"), "{elsewhere}");
}

#[test]
fn a_log_groups_prefix_is_held_to_cloudwatchs_characters_and_length() {
    const NAME: &str = "ENV0_CLOUDWATCH_LOG_GROUP_NAME_PREFIX";
    let longest = "p".repeat(512 - "env0-deployments".len());
    for prefix in ["/team.a/b_c#d-", &longest] {
        let on = accepted(&[CLOUDWATCH[0], CLOUDWATCH[1], (NAME, prefix)]).cloudwatch.unwrap();
        assert_eq!(on.group_prefix, prefix);
    }
    for prefix in ["a b", "a:b", "a*", "\u{e4}", &format!("{longest}p")] {
        assert!(refused(&[CLOUDWATCH[0], CLOUDWATCH[1], (NAME, prefix)]).starts_with(NAME), "{prefix}");
    }
}

#[test]
fn the_endpoint_of_cloudwatch_is_its_own_or_the_common_one() {
    let endpoint = |given| accepted(&[CLOUDWATCH[0], CLOUDWATCH[1], given]).cloudwatch.unwrap().endpoint_url.unwrap();
    assert_eq!(endpoint(("AWS_ENDPOINT_URL_CLOUDWATCH_LOGS", "http://127.0.0.1:2/")), "http://127.0.0.1:2");
    assert_eq!(endpoint(("AWS_ENDPOINT_URL", "http://127.0.0.1:1")), "http://127.0.0.1:1");
}

#[test]
fn a_variable_that_does_nothing_without_cloudwatchs_role_and_region_is_a_warning() {
    for idle in [
        ("ENV0_CLOUDWATCH_SESSION_DURATION", "900"),
        ("ENV0_CLOUDWATCH_LOG_GROUP_NAME_PREFIX", "team/"),
        ("AWS_ENDPOINT_URL_CLOUDWATCH_LOGS", "http://127.0.0.1:2"),
    ] {
        let warnings = with(&[idle]).unwrap().warnings;
        assert!(warnings[0].starts_with(&format!("{} does nothing without ENV0_CLOUDWATCH_ROLE_ARN", idle.0)));
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(with(&[CLOUDWATCH[0], CLOUDWATCH[1], idle]).unwrap().warnings.is_empty(), "{}", idle.0);
    }
}
