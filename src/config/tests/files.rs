//! Values that come in a file, and URLs, from wherever they come.

use super::*;

#[test]
fn a_value_in_a_file_is_held_to_the_rules_of_its_variable() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("value");
    let never = |good: &str| {
        [
            format!("\"{good}\""),
            format!("{{\"value\":\"{good}\"}}"),
            "${NAME}".to_owned(),
            "vault:secret/data/env0#it".to_owned(),
            format!("{good}\n{good}"),
            format!("{good}\u{7}"),
        ]
    };
    let url = "https://tokens.example.com/canary";
    for (name, good, others) in [
        ("ENV0_S3_LOG_OIDC_TOKEN_URL", url, vec!["tokens.example.com", "https://tokens.example.com/a canary"]),
        ("ENV0_API_KEY_ID", "canary-id", vec!["canary-id:canary-secret"]),
        ("ENV0_API_KEY_SECRET", "canary-secret", vec![]),
    ] {
        let file_name = format!("{name}_FILE");
        let named = || [pull::KEY, [(file_name.as_str(), path.to_str().unwrap()), (name, "")]].concat();
        for text in [good.to_owned(), format!("\u{feff}{good}\r\n")] {
            std::fs::write(&path, &text).unwrap();
            assert!(with(&named()).is_ok(), "{name}: {text:?}");
        }
        for text in never(good).into_iter().chain(others.into_iter().map(str::to_owned)) {
            std::fs::write(&path, &text).unwrap();
            let of_file = with(&named()).unwrap_err().errors;
            let of_variable = with(&[&pull::KEY[..], &[(name, &text)]].concat()).unwrap_err().errors;
            let expected = of_variable[0].split(": ").nth(1).unwrap().strip_suffix("; example").unwrap();
            // Nobody but a variable's own keepers keep quotes.
            let expected = expected.split(" (--env-file").next().unwrap();
            let of_file = of_file.iter().find(|error| error.starts_with(&format!("{file_name}="))).unwrap();
            assert!(of_file.contains(&format!(": {expected} (in that file); ")), "{of_file} / {of_variable:?}");
            assert!(expected.starts_with("expected ") && !of_file.contains("canary"), "{of_file}");
        }
    }
}

#[test]
fn a_url_with_white_space_in_it_is_refused_for_every_variable() {
    for name in [
        "ENV0_S3_LOG_OIDC_TOKEN_URL",
        "ENV0_S3_LOG_OIDC_ISSUER",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_ENDPOINT_URL_STS",
        "HTTPS_PROXY",
    ] {
        for url in ["https://a.example/b c", "https://a.example/\nhttps://b.example/", "https://a.ex\tample/"] {
            assert!(refused(&[(name, url)]).contains("expected a URL alone, without white space"), "{name}={url}");
        }
    }
    let api = [&pull::KEY[..], &[("ENV0_S3_LOG_API_URL", "https://api.example/ x")]].concat();
    assert!(refused(&api).contains("expected a URL alone, without white space"));
}

#[test]
fn the_files_of_an_api_key_are_held_to_the_same_rules_when_they_are_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let [id, secret] = ["id", "secret"].map(|name| folder.path().join(name));
    let files = KeyFiles { id: Some(id.clone()), secret: Some(secret.clone()) };
    std::fs::write(&secret, "canary-secret\n").unwrap();
    std::fs::write(&id, "an-id\n").unwrap();
    assert_eq!(
        files.read().unwrap().map(|value| value.unwrap().expose_secret().to_owned()),
        ["an-id", "canary-secret"]
    );
    std::fs::write(&id, "an-id:canary-secret\n").unwrap();
    let error = files.read().unwrap_err();
    assert!(error.starts_with("ENV0_API_KEY_ID_FILE=") && error.contains("the API key's id alone"), "{error}");
    assert!(!error.contains("canary"), "{error}");
}
