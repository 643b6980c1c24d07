use super::*;

#[test]
fn a_report_is_a_line_a_verdict_with_code_request_id_and_remedy() {
    let failed = Step::fail("sts", exit_code::DENIED, "STS refuses\nthe token", "mend it");
    let failed = failed.of_service(Some("AccessDenied".into()), Some("id-1".into()));
    let report = Report::new(vec![Step::ok("spool", "fine"), failed, Step::fail("write", exit_code::IO, "x", "y")]);
    assert_eq!(report.exit_code, exit_code::DENIED, "of the first failure");
    let text = report.text();
    assert_eq!(text.lines().count(), 6, "{text}");
    assert!(text.ends_with("Next: sts: mend it\n"), "{text}");
    assert!(text.contains("[ok]   spool         fine\n"), "{text}");
    assert!(text.contains("[fail] sts           STS refuses the token (AccessDenied, request id id-1)\n"), "{text}");
    assert!(text.contains("-> mend it\n"), "{text}");
}

#[test]
fn the_json_keeps_its_schema() {
    let report = Report::new(vec![Step::ok("spool", "fine")]);
    let expected = format!(
        "{{\"schema\":1,\"version\":\"{}\",\"ok\":true,\"exit_code\":0,\"steps\":[{{\"name\":\"spool\",\"verdict\":\"ok\",\
         \"detail\":\"fine\",\"code\":null,\"request_id\":null,\"remedy\":null}}]}}\n",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(report.json(), expected);
}
