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
SUB, SERVICE_ACCOUNT = "auth0|0123456789abcdef01234567", "system:serviceaccount:env0-agent:env0-s3-logs"
KEY = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
PROVIDER = "arn:aws:iam::111122223333:oidc-provider/"
PROJECT = "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9"
# What is right and what is wrong. None is what each of the two has for "none": null in the module, "" or 0 in the template.
VALUES = {
    ("bucket_name", "BucketName"): (
        ["my-env0-logs", "env0.logs.example.com", "abc"],
        ["s3://my-env0-logs", "My_Bucket", "my-env0-logs/path", "arn:aws:s3:::my-env0-logs", "ab", "a" * 64, "-logs", ""],
    ),
    ("subject", "Subject"): (
        [SUB, "google-oauth2|1234", "abcdef@clients", SERVICE_ACCOUNT],
        ["env0-s3-logs", "env0-agent:env0-s3-logs", "serviceaccount:env0-agent:env0-s3-logs", PROJECT, "*", "auth0|*", f" {SUB}", ""],
    ),
    ("issuer", "Issuer"): (
        [
            "login.app.env0.com/", "oidc.eks.us-east-1.amazonaws.com/id/0123456789ABCDEF", "acme.eu.auth0.com",
            "container.googleapis.com/v1/projects/p/locations/l/clusters/c", "eastus.oic.prod-aks.azure.com/tenant/cluster/",
        ],
        ["https://login.app.env0.com/", "login.app.env0.com", "https://oidc.eks.us-east-1.amazonaws.com/id/0", " login.app.env0.com/", ""],
    ),
    ("audiences", "Audiences"): (
        [["sts.amazonaws.com"], ["hoMiq9PdkRh9LUvVpH4wIErWg50VSG1b", "sts.amazonaws.com"], ["https://prod.env0.com"]],
        [[], [""], ["sts.amazonaws.com", ""], ["a", " b"], ["sts.amazonaws.com "], ["*"]],
    ),
    ("provider_arn", "ProviderArn"): (
        [None, f"{PROVIDER}login.app.env0.com/", PROVIDER.replace("aws", "aws-us-gov") + "oidc.eks.us-gov-east-1.amazonaws.com/id/A"],
        ["login.app.env0.com/", "https://login.app.env0.com/", PROVIDER, "arn:aws:iam::111122223333:role/env0-logs"],
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
    if name == "And":
        return all(holds(part, given) for part in value)
    assert name == "Equals", name
    one, other = (str(given[side["Ref"]]) if isinstance(side, dict) else str(side) for side in value)
    return one == other


def template_takes(parameter, value):
    """Whether CloudFormation would take the value, by the parameter's own limits and by the rules."""
    limits = TEMPLATE["Parameters"][parameter]
    text = ",".join(value) if isinstance(value, list) else value
    if text is None:
        text = 0 if limits["Type"] == "Number" else ""
    if limits["Type"] == "Number":
        fits = limits["MinValue"] <= text <= limits["MaxValue"]
    else:
        fits = re.fullmatch(limits["AllowedPattern"], text)
    given = {name: of.get("Default", "") for name, of in TEMPLATE["Parameters"].items()} | {parameter: text}
    rules = (rule for rule in TEMPLATE["Rules"].values() if holds(rule.get("RuleCondition", {"And": []}), given))
    return bool(fits) and all(holds(one["Assert"], given) for rule in rules for one in rule["Assertions"])


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
                (pattern,) = re.findall(r'regex\("\^(.*)\$", ', block)
                if variable == "audiences":
                    pattern = f"{pattern}(,{pattern})*"
                elif f"var.{variable} == null" in block:
                    pattern = f"({pattern})?"
                self.assertEqual(limits["AllowedPattern"], f"^{pattern}$")

    def test_the_template_takes_what_is_right_and_refuses_what_is_wrong(self):
        for (_, parameter), (right, wrong) in VALUES.items():
            for value in right + wrong:
                with self.subTest(f"{parameter}={value}"):
                    self.assertEqual(template_takes(parameter, value), value in right)

    @unittest.skipUnless(shutil.which("terraform"), "Terraform is not installed")
    def test_the_module_takes_what_is_right_and_refuses_what_is_wrong(self):
        with tempfile.TemporaryDirectory() as folder:
            # Without main.tf no provider is needed.
            shutil.copy(VARIABLES, folder)
            for (variable, _), (right, wrong) in VALUES.items():
                # Its "none" is null, so that one cannot be written by mistake.
                off = ([0] if isinstance(right[-1], int) else [""]) if right[0] is None else []
                for value in right + wrong + off:
                    given = {"bucket_name": "my-env0-logs", "subject": SUB} | {variable: value}
                    pathlib.Path(folder, "terraform.tfvars.json").write_text(json.dumps(given))
                    command = ["terraform", f"-chdir={folder}", "plan", "-input=false", "-no-color"]
                    plan = subprocess.run(command, capture_output=True, text=True, timeout=60)
                    with self.subTest(f"{variable}={value}"):
                        self.assertEqual(plan.returncode == 0, value in right, plan.stderr)
                        if value not in right:
                            self.assertIn(f"{variable} must be ", plan.stderr)


if __name__ == "__main__":
    unittest.main()
