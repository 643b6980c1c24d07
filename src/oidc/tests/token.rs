//! What a token tells without being verified.

use super::*;

#[test]
fn a_token_shows_neither_itself_nor_all_of_its_subject() {
    let issuer = Issuer::rs256("https://login.app.env0.com/", "key-1");
    let text = issuer.token();
    let token = OidcToken::own(&format!(" {text}\n"), Source::File).unwrap();
    assert_eq!(token.expose(), text);
    assert!(token.expires_at.is_some());
    assert_eq!(token.shortened_subject().unwrap(), "auth0|63021f2c…");
    assert!(!format!("{token:?}").contains(&text[..20]), "{token:?}");
}

#[test]
fn a_token_of_the_operators_own_is_left_to_sts_whatever_it_says() {
    let opaque = OidcToken::own("not-a-jwt", Source::Environment).unwrap();
    assert_eq!((opaque.expires_at, opaque.claims()), (None, ShownClaims::default()));
    assert!(OidcToken::own(" \n", Source::File).is_none());
    assert!(OidcToken::own("two words", Source::File).is_none());
}

#[test]
fn what_sts_compares_with_the_trust_policy_is_azp_or_else_each_aud() {
    let issuer = Issuer::es256("https://login.app.env0.com/", "key-1");
    for (azp, aud, shown) in [
        (json!("client"), json!("https://prod.env0.com"), vec!["client"]),
        (json!("client"), json!(["a", "b"]), vec!["client"]),
        (Value::Null, json!("sts.amazonaws.com"), vec!["sts.amazonaws.com"]),
        (Value::Null, json!(["a", "b", 7]), vec!["a", "b"]),
        (Value::Null, Value::Null, vec![]),
    ] {
        let mut claims = issuer.claims(Utc::now());
        (claims["azp"], claims["aud"]) = (azp, aud);
        assert_eq!(OidcToken::own(&issuer.sign(&claims), Source::File).unwrap().claims().audience, shown);
    }
}

#[test]
fn what_a_token_says_of_itself_is_cut_and_made_of_one_line() {
    let issuer = Issuer::es256("https://login.app.env0.com/", "key-1");
    let mut claims = issuer.claims(Utc::now());
    claims["sub"] = json!(format!("auth0|\n\u{1b}[31m{}", "x".repeat(10_000)));
    let token = OidcToken::own(&issuer.sign(&claims), Source::File).unwrap();
    let subject = token.claims().subject.unwrap();
    assert!(subject.chars().count() <= 256 && !subject.contains(char::is_control), "{subject}");
    assert_eq!(token.shortened_subject().unwrap(), "auth0| [31mxxx…");
}

#[test]
fn a_time_that_somebody_else_says_stays_within_the_calendar() {
    let year = |seconds: f64| moment(seconds).format("%Y").to_string();
    for (seconds, expected) in [
        (0.0, "1970"),
        (1.8e9, "2027"),
        (253_402_300_799.0, "9999"),
        (253_402_300_800.0, "9999"),
        (8.21e12, "9999"),
        (i64::MAX as f64, "9999"),
        (f64::MAX, "9999"),
        (f64::INFINITY, "9999"),
        (f64::NAN, "1970"),
        (-1.0, "1970"),
        (f64::MIN, "1970"),
    ] {
        assert_eq!(year(seconds), expected, "{seconds}");
    }
}
