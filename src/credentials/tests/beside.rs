//! Two roles, one stock of tokens.

use super::*;
use crate::config::CloudWatch;

const ARN: &str = "arn:aws:iam::123456789012:role/env0-cloudwatch";

fn start_both(config: &Config) -> (Credentials, Credentials) {
    let network = Network::new(&config.network).unwrap();
    let bucket = start(config);
    let cloudwatch = CloudWatch {
        role_arn: ARN.to_owned(),
        aws_region: "us-west-2".to_owned(),
        session_duration: Duration::from_secs(900),
        group_prefix: String::new(),
        endpoint_url: None,
    };
    let role = Role::of_cloudwatch(&cloudwatch);
    let beside = bucket.start_beside(role, config, &network, "0123456789abcdef", CancellationToken::new());
    (bucket, beside)
}

/// The roles that were asked for with `token`.
fn roles_asked(server: &Server, token: &str) -> Vec<String> {
    let seen = server.seen();
    let with_it = seen.iter().filter(|request| request.field("WebIdentityToken").as_deref() == Some(token));
    with_it.map(|request| request.field("RoleArn").unwrap()).collect()
}

#[tokio::test]
async fn a_token_handed_over_gives_each_role_a_session_of_its_own_length() {
    let server = sts(|request| match request.field("RoleArn").as_deref() {
        Some(ARN) => sts_session("AKIACW", TimeDelta::hours(1)),
        _ => sts_session("AKIAS3", TimeDelta::hours(1)),
    })
    .await;
    let (bucket, cloudwatch) = start_both(&config(&server.url()));
    let token = hand_over(&bucket, &issuer(), 60);
    assert_eq!(soon(bucket.wait_session()).await.access_key_id, "AKIAS3");
    assert_eq!(soon(cloudwatch.wait_session()).await.access_key_id, "AKIACW");
    let mut asked = roles_asked(&server, &token);
    asked.sort();
    assert_eq!(asked, [ARN, "arn:aws:iam::123456789012:role/env0-logs"]);
    let mut durations = exchanges(&server, "DurationSeconds");
    durations.sort();
    assert_eq!(durations, ["3600", "900"]);
    assert_eq!(cloudwatch.status().role_arn, ARN);
}

#[tokio::test]
async fn the_operators_own_token_reaches_both_roles() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    std::fs::write(&path, issuer().token()).unwrap();
    let server = sts(|_| sts_session("AKIA1", TimeDelta::hours(1))).await;
    for own in [
        Config { oidc_token_file: Some(("ENV0_OIDC_TOKEN_FILE", path)), ..config(&server.url()) },
        Config { oidc_token: Some(issuer().token().as_str().into()), ..config(&server.url()) },
    ] {
        let (bucket, cloudwatch) = start_both(&own);
        soon(bucket.wait_session()).await;
        soon(cloudwatch.wait_session()).await;
    }
}

#[tokio::test]
async fn a_role_that_sts_refuses_is_named_with_its_variable_and_leaves_the_other_alone() {
    let server = sts(|request| match request.field("RoleArn").as_deref() {
        Some(ARN) => sts_error(400, "ValidationError", "DurationSeconds exceeds the MaxSessionDuration of this role"),
        _ => sts_session("AKIAS3", TimeDelta::hours(1)),
    })
    .await;
    let (bucket, cloudwatch) = start_both(&config(&server.url()));
    hand_over(&bucket, &issuer(), 60);
    soon(bucket.wait_session()).await;
    until("the refusal", || cloudwatch.status().last_error.is_some()).await;
    let told = cloudwatch.status().last_error.unwrap().remedy;
    assert!(told.contains("ENV0_CLOUDWATCH_SESSION_DURATION=900"), "{told}");
    assert!(cloudwatch.status().tokens[0].set_aside && !bucket.status().tokens[0].set_aside);
}

#[tokio::test]
async fn a_session_that_is_refused_is_replaced_for_its_role_alone() {
    let server = sts(|_| sts_session("AKIA1", TimeDelta::hours(1))).await;
    let (bucket, cloudwatch) = start_both(&config(&server.url()));
    hand_over(&bucket, &issuer(), 60);
    soon(bucket.wait_session()).await;
    let first = soon(cloudwatch.wait_session()).await;
    cloudwatch.session_is_refused(first.id);
    assert_eq!(soon(cloudwatch.wait_session()).await.id, 2);
    assert_eq!(bucket.session().unwrap().id, 1);
}
