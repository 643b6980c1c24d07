//! The stand-in behaves as AWS does where the daemon depends on it, seen through the AWS SDK.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region, RequestChecksumCalculation};
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::ByteStream;
use base64::Engine;
use env0_s3_logs::batch::Sha256;
use serde_json::json;

use crate::local_aws::issuer::{CLIENT_ID, Signing};
use crate::local_aws::sts::StsError;
use crate::local_aws::{AUDITOR, BUCKET, Fault, LocalAws, Operation, REGION, ROLE_ARN};

/// An AWS with a runtime for the SDK's clients.
struct World {
    aws: LocalAws,
    runtime: tokio::runtime::Runtime,
}

impl World {
    fn new() -> World {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        World { aws: LocalAws::start(), runtime }
    }

    /// Exchanges `token` for a session; the error's code where STS refuses.
    fn assume(&self, token: &str, seconds: i32) -> Result<Credentials, String> {
        let config = aws_sdk_sts::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .endpoint_url(self.aws.sts.url())
            .retry_config(aws_sdk_sts::config::retry::RetryConfig::disabled())
            .build();
        let exchange = aws_sdk_sts::Client::from_conf(config)
            .assume_role_with_web_identity()
            .role_arn(ROLE_ARN)
            .role_session_name("env0-s3-logs-test")
            .web_identity_token(token)
            .duration_seconds(seconds)
            .send();
        let output = self.runtime.block_on(exchange).map_err(|error| error.code().unwrap_or("no answer").to_owned())?;
        let session = output.credentials.unwrap();
        let token = Some(session.session_token);
        Ok(Credentials::new(session.access_key_id, session.secret_access_key, token, None, "sts"))
    }

    fn session(&self) -> aws_sdk_s3::Client {
        self.client(self.assume(&self.aws.issuer.token(), 3600).unwrap())
    }

    fn auditor(&self) -> aws_sdk_s3::Client {
        self.client(Credentials::new(AUDITOR.0, AUDITOR.1, None, None, "static"))
    }

    fn client(&self, credentials: Credentials) -> aws_sdk_s3::Client {
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .endpoint_url(self.aws.s3.url())
            .force_path_style(true)
            .credentials_provider(credentials)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .retry_config(aws_sdk_s3::config::retry::RetryConfig::disabled())
            .build();
        aws_sdk_s3::Client::from_conf(config)
    }

    /// Puts an object; the status and the error's code where S3 refuses.
    fn put(&self, request: PutObjectFluentBuilder) -> Result<(), (u16, String)> {
        outcome(self.runtime.block_on(request.send()))
    }
}

fn outcome<T, E: ProvideErrorMetadata>(result: Result<T, aws_sdk_s3::error::SdkError<E>>) -> Result<(), (u16, String)> {
    let Err(error) = result else { return Ok(()) };
    let status = error.raw_response().map_or(0, |response| response.status().as_u16());
    Err((status, error.code().unwrap_or_default().to_owned()))
}

/// A PUT as the daemon's: conditional, with the body's hash.
fn request(client: &aws_sdk_s3::Client, key: &str, body: &str) -> PutObjectFluentBuilder {
    let sha256 = base64::engine::general_purpose::STANDARD.encode(Sha256::of(body.as_bytes()).0);
    let put = client.put_object().bucket(BUCKET).key(key).if_none_match("*").checksum_sha256(sha256);
    put.metadata("env0-sequence", "1").body(ByteStream::from(body.as_bytes().to_vec()))
}

const KEY: &str = "acme/env0-deployments/2026/11/22/21:04:05_aB3dE.log";

#[test]
fn a_session_can_put_and_locate_and_do_nothing_else() {
    let world = World::new();
    let client = world.session();
    assert_eq!(world.put(request(&client, KEY, "{}\n")), Ok(()));
    let location = world.runtime.block_on(client.get_bucket_location().bucket(BUCKET).send()).unwrap();
    assert_eq!(location.location_constraint.unwrap().as_str(), REGION);

    let denied = Err((403, "AccessDenied".to_owned()));
    let run = &world.runtime;
    assert_eq!(outcome(run.block_on(client.list_objects_v2().bucket(BUCKET).send())), denied);
    assert_eq!(outcome(run.block_on(client.get_object().bucket(BUCKET).key(KEY).send())), denied);
    assert_eq!(outcome(run.block_on(client.head_object().bucket(BUCKET).key(KEY).send())).unwrap_err().0, 403);
    assert_eq!(outcome(run.block_on(client.delete_object().bucket(BUCKET).key(KEY).send())), denied);
    assert_eq!(world.put(request(&client, "tagged", "{}\n").tagging("a=b")), denied);
    assert_eq!(world.put(request(&client, "acl", "{}\n").acl("private".into())), denied);

    let object = &world.aws.s3.objects()[0];
    assert_eq!((object.key.as_str(), object.lines), (KEY, 1));
    assert_eq!(object.metadata["env0-sequence"], "1");
}

#[test]
fn of_many_puts_to_one_key_one_wins_and_the_rest_hear_412() {
    let world = World::new();
    let client = world.session();
    let puts = (0..12).map(|number| request(&client, KEY, &format!("{{\"n\":{number}}}\n")).send());
    let results = world.runtime.block_on(futures_util::future::join_all(puts));
    let outcomes: Vec<_> = results.into_iter().map(outcome).collect();
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    let refused = Err((412, "PreconditionFailed".to_owned()));
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == refused).count(), 11, "{outcomes:?}");
    assert_eq!((world.aws.s3.objects().len(), world.aws.s3.overwritten()), (1, 0));
}

#[test]
fn an_unconditional_put_overwrites_and_is_counted() {
    let world = World::new();
    world.aws.s3.put(KEY, "other\n", HashMap::new());
    let put = world.session().put_object().bucket(BUCKET).key(KEY).body(ByteStream::from_static(b"{}\n"));
    assert_eq!(world.put(put), Ok(()));
    assert_eq!(world.aws.s3.overwritten(), 1);
}

#[test]
fn a_body_that_differs_from_its_hash_is_refused() {
    let world = World::new();
    let put = request(&world.session(), KEY, "{}\n").body(ByteStream::from_static(b"[]\n"));
    assert_eq!(world.put(put), Err((400, "BadDigest".into())));
    assert!(world.aws.s3.objects().is_empty());
}

#[test]
fn a_forged_signature_or_session_token_is_refused() {
    let world = World::new();
    let good = world.assume(&world.aws.issuer.token(), 3600).unwrap();
    let forge = |secret: &str, token: Option<&str>| {
        let forged = Credentials::new(good.access_key_id(), secret, token.map(str::to_owned), None, "forged");
        world.put(request(&world.client(forged), KEY, "{}\n")).unwrap_err().1
    };
    assert_eq!(forge("wrong", good.session_token()), "SignatureDoesNotMatch");
    assert_eq!(forge(good.secret_access_key(), Some("wrong")), "InvalidToken");
    assert_eq!(forge(good.secret_access_key(), None), "InvalidToken");
}

#[test]
fn an_expired_session_is_refused_as_s3_does() {
    let world = World::new();
    let client = world.session();
    assert_eq!(world.put(request(&client, "before", "{}\n")), Ok(()));
    world.aws.expire_all_sessions();
    assert_eq!(world.put(request(&client, "after", "{}\n")), Err((400, "ExpiredToken".into())));
}

#[test]
fn faults_answer_lose_and_take_as_asked_and_end() {
    let world = World::new();
    let (client, s3) = (world.session(), &world.aws.s3);
    let put = |key: &str| world.put(request(&client, key, "{}\n"));

    s3.inject(Fault::slow_down().times(2).where_key_has("audits"));
    assert_eq!(put("deployments"), Ok(()));
    assert_eq!(put("audits"), Err((503, "SlowDown".into())));
    assert_eq!(put("audits"), Err((503, "SlowDown".into())));
    assert_eq!(put("audits"), Ok(()));

    s3.inject(Fault::lose_response().times(1));
    assert_eq!(put("lost").unwrap_err().0, 0);
    assert_eq!(put("lost"), Err((412, "PreconditionFailed".into())), "it was stored");

    s3.inject(Fault::drop_connection().times(1));
    assert_eq!(put("dropped").unwrap_err().0, 0);
    assert_eq!(put("dropped"), Ok(()), "it was not stored");

    s3.inject(Fault::take_key().times(1));
    assert_eq!(put("taken"), Err((412, "PreconditionFailed".into())));

    s3.inject(Fault::permanent_redirect("us-west-2"));
    assert_eq!(put("elsewhere"), Err((301, "PermanentRedirect".into())));
    s3.heal();
    s3.inject(Fault::access_denied().on(Operation::GetBucketLocation).times(1));
    let location = || outcome(world.runtime.block_on(client.get_bucket_location().bucket(BUCKET).send()));
    assert_eq!(location(), Err((403, "AccessDenied".into())));
    assert_eq!(location(), Ok(()));

    assert_eq!(s3.put_count(), 10);
    assert_eq!(s3.requests().iter().filter(|request| request.status.is_none()).count(), 2);
}

#[test]
fn an_auditor_lists_page_by_page_and_reads_what_was_stored() {
    let world = World::new();
    let session = world.session();
    for number in 0..5 {
        assert_eq!(world.put(request(&session, &format!("a/{number}"), "{}\n")), Ok(()));
    }
    let client = world.auditor();
    let list = client.list_objects_v2().bucket(BUCKET).prefix("a/").max_keys(2);
    let pages = world.runtime.block_on(list.into_paginator().send().collect::<Result<Vec<_>, _>>()).unwrap();
    let keys: Vec<_> = pages.iter().flat_map(|page| page.contents()).map(|object| object.key().unwrap()).collect();
    assert_eq!((pages.len(), keys), (3, vec!["a/0", "a/1", "a/2", "a/3", "a/4"]));

    let object = world.runtime.block_on(async {
        let head = client.head_object().bucket(BUCKET).key("a/3").send().await.unwrap();
        assert_eq!(head.metadata().unwrap()["env0-sequence"], "1");
        client.get_object().bucket(BUCKET).key("a/3").send().await.unwrap().body.collect().await.unwrap()
    });
    assert_eq!(object.to_vec(), b"{}\n");
    assert_eq!(world.put(request(&client, "b", "{}\n")), Err((403, "AccessDenied".into())));
}

#[test]
fn sts_judges_signature_expiry_issuer_audience_subject_and_duration() {
    let world = World::new();
    let (issuer, sts) = (&world.aws.issuer, &world.aws.sts);
    let judge = |token: String| world.assume(&token, 3600).map(|_| "session").unwrap_or_else(|code| code.leak());

    assert_eq!(judge(issuer.token()), "session");
    for without_azp in [json!(["https://prod.env0.com", CLIENT_ID]), json!("sts.amazonaws.com")] {
        assert_eq!(judge(issuer.mint(json!({ "aud": without_azp, "azp": null }))), "session");
    }
    assert_eq!(judge(issuer.mint(json!({ "aud": CLIENT_ID, "azp": "another" }))), "InvalidIdentityToken");
    assert_eq!(judge(issuer.expired_token(1)), "ExpiredTokenException");
    assert_eq!(judge(issuer.mint(json!({ "aud": "https://prod.env0.com", "azp": null }))), "InvalidIdentityToken");
    assert_eq!(judge(issuer.mint(json!({ "iss": "https://example.com/" }))), "InvalidIdentityToken");
    assert_eq!(judge(issuer.mint(json!({ "sub": "auth0|other" }))), "AccessDenied");
    for signing in [Signing::Forged, Signing::Hs256, Signing::None] {
        assert_eq!(judge(issuer.mint_signed(json!({}), signing)), "InvalidIdentityToken");
    }
    assert_eq!(judge("not a token".into()), "InvalidIdentityToken");
    assert_eq!(judge(format!("{}\n", issuer.token())), "InvalidIdentityToken", "a newline is not trimmed");

    let old = issuer.token();
    issuer.rotate();
    assert_eq!(judge(old), "InvalidIdentityToken");
    issuer.set_down(true);
    assert_eq!(judge(issuer.token()), "IDPCommunicationError");
    issuer.set_down(false);

    assert_eq!(world.assume(&issuer.token(), 7200).unwrap_err(), "ValidationError");
    sts.set_max_session(Duration::from_secs(7200));
    assert!(world.assume(&issuer.token(), 7200).is_ok());
    sts.set_tag_session_allowed(false);
    assert_eq!(judge(issuer.token()), "AccessDenied");
    sts.set_tag_session_allowed(true);

    sts.fail_next(1, StsError::throttling());
    assert_eq!(judge(issuer.token()), "Throttling");
    sts.set_down();
    assert_eq!(judge(issuer.token()), "no answer");
    sts.heal();
    assert_eq!(judge(issuer.token()), "session");

    let first = &sts.exchanges()[0];
    assert_eq!((first.duration_seconds, first.role_session_name.as_str()), (Some(3600), "env0-s3-logs-test"));
    assert_eq!(sts.sessions_issued(), 5);
}
