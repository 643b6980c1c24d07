"""Module and template refuse the same wrong values, in words that say what was expected.

The template's patterns and rules are evaluated here, as no tool does it without AWS. The module's are judged by Terraform,
where it is installed; the patterns of both must be the same text in any case.
"""

import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

import yaml

AWS = pathlib.Path(__file__).resolve().parents[2] / "config" / "aws"
VARIABLES = AWS / "terraform" / "variables.tf"
BUCKET = "acme-env0-logs"
SUB, SERVICE_ACCOUNT = "auth0|65f0c2d4e8b1a73f09c4d2ab", "env0-agent:env0-s3-logs"
CLUSTER = "oidc.eks.us-east-1.amazonaws.com/id/0123456789ABCDEF"
KEY = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
PROJECT = "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9"
# What is right and what is wrong. None is what each of the two has for "none": null in the module, "" or 0 in the template.
VALUES = {
    ("bucket_name", "BucketName"): (
        [BUCKET, "env0.logs.example.com", "abc"],
        ["s3://my-env0-logs", "My_Bucket", "my-env0-logs/path", "arn:aws:s3:::my-env0-logs", "ab", "a" * 64, "-logs", "my..logs", "",
         "192.168.0.1", "xn--logs", "my-logs-s3alias", "logs--use1-az4--x-s3", "acme.s3.amazonaws.com"],
    ),
    ("subject", "Subject"): (
        [SUB, "google-oauth2|1234", "abcdef@clients"],
        ["env0-s3-logs", SERVICE_ACCOUNT, f"system:serviceaccount:{SERVICE_ACCOUNT}", PROJECT, "*", "auth0|*", f" {SUB}"],
    ),
    ("service_account", "ServiceAccount"): (
        [SERVICE_ACCOUNT],
        ["env0-s3-logs", f"serviceaccount:{SERVICE_ACCOUNT}", f"system:serviceaccount:{SERVICE_ACCOUNT}", "env0-agent:*", SUB],
    ),
    ("issuer", "Issuer"): (
        ["login.app.env0.com/", "acme.eu.auth0.com"],
        ["https://login.app.env0.com/", "login.app.env0.com", "https://oidc.eks.us-east-1.amazonaws.com/id/0", " login.app.env0.com/", ""],
    ),
    ("audiences", "Audiences"): (
        [["sts.amazonaws.com"], ["hoMiq9PdkRh9LUvVpH4wIErWg50VSG1b", "sts.amazonaws.com"], ["https://prod.env0.com"]],
        [[], [""], ["sts.amazonaws.com", ""], ["a", " b"], ["sts.amazonaws.com "], ["*"]],
    ),
    ("project_id", "ProjectId"): ([None, PROJECT], ["my-project", PROJECT[:-1], f"{PROJECT},{PROJECT}"]),
    ("retention_days", "RetentionDays"): ([None, 1, 400], [-1, 2147483648]),
    ("object_lock_days", "ObjectLockDays"): ([None, 1, 36500], [-1, 36501]),
    ("kms_key_arn", "KmsKeyArn"): (
        [None, KEY, KEY.replace(KEY.rsplit("/")[-1], "mrk-1234abcd12ab34cd56ef1234567890ab")],
        ["alias/logs", KEY.replace("key/", "alias/"), KEY.rsplit("/")[-1], "arn:aws:kms:eu-west-1::key/logs"],
    ),
    ("permissions_boundary_arn", "PermissionsBoundaryArn"): (
        [None, "arn:aws:iam::111122223333:policy/team/boundary", "arn:aws:iam::aws:policy/PowerUserAccess"],
        ["boundary", "arn:aws:iam::111122223333:role/boundary", "arn:aws:iam::111122223333:policy/"],
    ),
    ("log_group_prefix", "LogGroupPrefix"): (["", "team/", "/env0/prod-1_#."], ["team/*", "my team/", "team:"]),
}
# What else has to be given with the parameter that is tried.
BESIDE = {
    ("service_account", "ServiceAccount"): {("subject", "Subject"): None, ("issuer", "Issuer"): CLUSTER},
    ("log_group_prefix", "LogGroupPrefix"): {("cloudwatch", "CloudWatch"): True},
}
# Clusters' issuers, for a pod's own token.
CLUSTERS = [
    CLUSTER, "container.googleapis.com/v1/projects/p/locations/l/clusters/c", "eastus.oic.prod-aks.azure.com/tenant/cluster/",
    "oidc.example.com/my-cluster",
]
# Values that are right by themselves and not together, and what both say to them.
TOGETHER = [
    ({("subject", "Subject"): None}, "one of the two"),
    ({("service_account", "ServiceAccount"): SERVICE_ACCOUNT, ("issuer", "Issuer"): CLUSTER}, "one of the two"),
    ({("service_account", "ServiceAccount"): SERVICE_ACCOUNT, ("subject", "Subject"): None}, "give the cluster's issuer, too"),
    ({("subject", "Subject"): "auth0|0123456789abcdef01234567"}, "subject is the example of the documents"),
    ({("bucket_name", "BucketName"): "my-env0-logs"}, "my-env0-logs is the example of the documents, and a bucket's name is unique in all of AWS"),
    ({("log_group_prefix", "LogGroupPrefix"): "team/"}, "works only with cloudwatch"),
]
# The rules of a template can't look at a part of a text.
OF_THE_MODULE = [({("issuer", "Issuer"): CLUSTER}, "give service_account in place of subject")]


class Loader(yaml.SafeLoader):
    """CloudFormation's short forms: `!Not x` is {"Not": x}."""


def short_form(loader, suffix, node):
    construct = {"scalar": loader.construct_scalar, "sequence": loader.construct_sequence, "mapping": loader.construct_mapping}
    value = construct[node.id](node) if node.id == "scalar" else construct[node.id](node, deep=True)
    return {suffix: value}


Loader.add_multi_constructor("!", short_form)
TEMPLATE = yaml.load((AWS / "cloudformation.yaml").read_text(), Loader)


def holds(rule, given):
    """A condition of the template's `Rules`."""
    ((name, value),) = rule.items()
    if name == "Not":
        return not holds(value[0], given)
    if name in ("And", "Or"):
        return (all if name == "And" else any)(holds(part, given) for part in value)
    assert name == "Equals", name
    one, other = (str(given[side["Ref"]]) if isinstance(side, dict) else str(side) for side in value)
    return one == other


def template_text(parameter, value):
    """The value as a parameter's text; what is null in the module is empty here."""
    if value is None:
        return 0 if TEMPLATE["Parameters"][parameter]["Type"] == "Number" else ""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, list) else value


def template_refuses(values):
    """What CloudFormation says to these values, by the parameters' own limits and by the rules; empty if it takes them."""
    given = {"BucketName": BUCKET, "Subject": SUB} | {parameter: template_text(parameter, value) for (_, parameter), value in values.items()}
    said = []
    for parameter, text in given.items():
        limits = TEMPLATE["Parameters"][parameter]
        if limits["Type"] == "Number":
            fits = limits["MinValue"] <= text <= limits["MaxValue"]
        elif "AllowedValues" in limits:
            fits = text in limits["AllowedValues"]
        else:
            fits = re.fullmatch(limits["AllowedPattern"], text) and len(text) >= limits.get("MinLength", 0)
            fits = fits and len(text) <= limits.get("MaxLength", len(text))
        if not fits:
            said.append(f"{parameter} {limits.get('ConstraintDescription', '')}")
    given = {name: of.get("Default", "") for name, of in TEMPLATE["Parameters"].items()} | given
    rules = (rule for rule in TEMPLATE["Rules"].values() if holds(rule.get("RuleCondition", {"And": []}), given))
    failed = (one for rule in rules for one in rule["Assertions"] if not holds(one["Assert"], given))
    return "; ".join(said + [one["AssertDescription"] for one in failed])


def module_refuses(folder, values):
    """What Terraform says to these values; empty if it takes them."""
    given = {"bucket_name": BUCKET, "subject": SUB} | {variable: value for (variable, _), value in values.items()}
    pathlib.Path(folder, "terraform.tfvars.json").write_text(json.dumps(given))
    command = ["terraform", f"-chdir={folder}", "plan", "-input=false", "-no-color"]
    plan = subprocess.run(command, capture_output=True, text=True, timeout=60)
    # It breaks its lines, and draws a frame around them.
    return re.sub(r"[\s│]+", " ", plan.stderr) or "refused" if plan.returncode else ""


def of_a_pod(issuer):
    return {("service_account", "ServiceAccount"): SERVICE_ACCOUNT, ("subject", "Subject"): None, ("issuer", "Issuer"): issuer}


def of_module(variable):
    """The text of a variable's block in the module."""
    (block,) = re.findall(rf'^variable "{variable}" \{{\n(.*?)^\}}', VARIABLES.read_text(), re.M | re.S)
    return block


class Values(unittest.TestCase):
    def test_every_text_and_number_is_judged_in_both(self):
        free = {name for name, of in TEMPLATE["Parameters"].items() if "AllowedValues" not in of}
        self.assertEqual(free, {parameter for _, parameter in VALUES})
        typed = re.findall(r'^variable "(\w+)" \{\n(?:  .*\n)*?  type +=(?! bool)', VARIABLES.read_text(), re.M)
        self.assertEqual(set(typed), {variable for variable, _ in VALUES})

    def test_the_patterns_are_the_same(self):
        for variable, parameter in VALUES:
            limits = TEMPLATE["Parameters"][parameter]
            block = of_module(variable)
            with self.subTest(variable):
                self.assertIn(f'error_message = "{variable} must be ', block)
                if limits["Type"] == "Number":
                    self.assertIn(f"<= {limits['MaxValue']}", block)
                    continue
                self.assertTrue(limits["ConstraintDescription"].startswith("must be "))
                not_these = re.findall(r'!can\(regex\("\^(.*)\$", var', block)
                (pattern,) = re.findall(r'(?<!!)can\(regex\("\^(.*?)\$", ', block)
                # Terraform's expressions have no look-ahead.
                pattern = "".join(f"(?!{names}$)" for names in not_these) + pattern
                pattern = pattern.replace("\\\\", "\\")
                if variable == "audiences":
                    pattern = f"{pattern}(,{pattern})*"
                elif f"var.{variable} == null" in block:
                    pattern = f"({pattern})?"
                self.assertEqual(limits["AllowedPattern"], f"^{pattern}$")

    def test_the_template_takes_what_is_right_and_refuses_what_is_wrong(self):
        for names, (right, wrong) in VALUES.items():
            for value in right + wrong:
                with self.subTest(f"{names[1]}={value}"):
                    refused = template_refuses(BESIDE.get(names, {}) | {names: value})
                    self.assertEqual(refused == "", value in right, refused)

    def test_what_does_not_go_together_is_refused(self):
        for values, words in TOGETHER:
            with self.subTest(words):
                self.assertIn(words, re.sub("Issuer|CloudWatch|Subject", lambda name: name[0].lower(), template_refuses(values)))
        for values in ({}, *map(of_a_pod, CLUSTERS)):
            self.assertEqual(template_refuses(values), "")

    @unittest.skipUnless(shutil.which("terraform"), "Terraform is not installed")
    def test_the_module_takes_what_is_right_and_refuses_what_is_wrong(self):
        with tempfile.TemporaryDirectory() as folder:
            # Without main.tf no provider is needed.
            shutil.copy(VARIABLES, folder)
            for names, (right, wrong) in VALUES.items():
                # Its "none" is null, so that one cannot be written by mistake.
                off = ([0] if isinstance(right[-1], int) else [""]) if right[0] is None else []
                for value in right + wrong + off:
                    with self.subTest(f"{names[0]}={value}"):
                        refused = module_refuses(folder, BESIDE.get(names, {}) | {names: value})
                        self.assertEqual(refused == "", value in right, refused)
                        if value not in right:
                            self.assertIn(f"{names[0]} must be ", refused)
            for values, words in TOGETHER + OF_THE_MODULE:
                with self.subTest(words):
                    self.assertIn(words, module_refuses(folder, values))
            for issuer in CLUSTERS:
                self.assertEqual(module_refuses(folder, of_a_pod(issuer)), "")


if __name__ == "__main__":
    unittest.main()
