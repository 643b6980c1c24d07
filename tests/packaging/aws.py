"""The AWS set-up: the template is made in moto, the daemon delivers with what it made, and both forms agree with config/*.json.

moto makes no BucketPolicy and no OIDCProvider of a template and judges no token: cfn-lint and the comparison with
config/trust-policy.json hold those.
"""

import ast
import base64
import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings

import boto3
import cfnlint.decode
import hcl2

from live import BINARY, ROOT, TOKEN, free_port, wait_until_ready

BUCKET, SUBJECT, REGION = "my-env0-logs", "auth0|65f0c2d4e8b1a73f09c4d2ab", "us-east-1"
# moto's templates know no OpenID Connect provider.
NONE_MADE = {"CreateProvider": "false"}
EXAMPLE = "auth0|0123456789abcdef01234567"
BOUNDARY = "arn:aws:iam::123456789012:policy/boundary"
DEADLINE_SECONDS = 60
TEMPLATE = ROOT / "config" / "aws" / "cloudformation.yaml"
EVENT = b'{"message":"made by the template"}\n'


def check(holds, words):
    if not holds:
        sys.exit(f"config/aws: {words}")


def config(name):
    return json.loads((ROOT / "config" / name).read_text())


def wait_for(what, condition):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if result := condition():
                return result
        time.sleep(0.05)
    return sys.exit(f"{what} did not come within {DEADLINE_SECONDS} s")


def make_stack(client, name, **parameters):
    client("cloudformation").create_stack(
        StackName=name,
        TemplateBody=TEMPLATE.read_text(),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        Capabilities=["CAPABILITY_IAM"],
    )
    (stack,) = client("cloudformation").describe_stacks(StackName=name)["Stacks"]
    check(stack["StackStatus"] == "CREATE_COMPLETE", f"the stack is {stack['StackStatus']}")
    # An output's description is the daemon's variable.
    return {output["Description"]: output["OutputValue"] for output in stack["Outputs"]}


def role_policy(client, variables, name):
    """An inline policy of the role that was made."""
    role = variables["ENV0_S3_LOG_ROLE_ARN"].rsplit("/", 1)[1]
    policy = client("iam").get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
    if isinstance(policy, str):
        # moto keeps an inline policy of a template as Python prints it.
        policy = ast.literal_eval(json.loads(policy) if policy.startswith('"') else policy)
    return policy


def trust_policy(client, variables):
    """The trust policy of the role that was made, with the account and the sub of the examples."""
    role = variables["ENV0_S3_LOG_ROLE_ARN"].rsplit("/", 1)[1]
    trust = json.dumps(client("iam").get_role(RoleName=role)["Role"]["AssumeRolePolicyDocument"])
    return json.loads(trust.replace("::123456789012:", "::111122223333:").replace(SUBJECT, EXAMPLE))


def check_role(client, variables):
    trust = trust_policy(client, variables)
    check(trust == config("trust-policy.json"), f"the trust policy is {json.dumps(trust)}")
    policy = role_policy(client, variables, "env0-s3-logs")
    check(policy == config("iam-policy.json"), f"the role may {json.dumps(policy)}")


def check_role_of_a_pod(client):
    """A service account's role trusts its cluster alone."""
    issuer = "oidc.eks.us-east-1.amazonaws.com/id/0123456789ABCDEF"
    pod = {"Issuer": issuer, "Audiences": "sts.amazonaws.com", "ServiceAccount": "env0-agent:env0-s3-logs"}
    variables = make_stack(client, "pod", BucketName="of-a-pod", **pod, **NONE_MADE)
    (statement,) = trust_policy(client, variables)["Statement"]
    check(statement["Principal"] == {"Federated": f"arn:aws:iam::111122223333:oidc-provider/{issuer}"}, statement)
    subject = "system:serviceaccount:env0-agent:env0-s3-logs"
    wanted = {"StringEquals": {f"{issuer}:aud": ["sts.amazonaws.com"], f"{issuer}:sub": subject}}
    check(statement["Condition"] == wanted, statement)


def check_cloudwatch(client):
    """With its parameter the role may do what config/cloudwatch-policy.json says, and the outputs say so."""
    parameters = {"BucketName": "with-cloudwatch", "Subject": SUBJECT, **NONE_MADE, "CloudWatch": "true"}
    variables = make_stack(client, "cloudwatch", **parameters)
    check(variables["ENV0_CLOUDWATCH_ROLE_ARN"] == variables["ENV0_S3_LOG_ROLE_ARN"], variables)
    check(variables["ENV0_CLOUDWATCH_AWS_REGION"] == REGION, variables)
    policy = json.dumps(role_policy(client, variables, "env0-s3-logs-cloudwatch"))
    # moto's account.
    policy = json.loads(policy.replace(":123456789012:", ":111122223333:"))
    check(policy == config("cloudwatch-policy.json"), f"the role may {json.dumps(policy)}")
    parameters |= {"BucketName": "with-a-prefix", "LogGroupPrefix": "team/"}
    variables = make_stack(client, "prefix", **parameters)
    check(variables["ENV0_CLOUDWATCH_LOG_GROUP_NAME_PREFIX"] == "team/", variables)
    (statement,) = role_policy(client, variables, "env0-s3-logs-cloudwatch")["Statement"]
    check(all(":log-group:team/env0-" in resource for resource in statement["Resource"]), statement)


def verify(port, bucket, keys):
    """The exit code of `verify` by somebody with these access keys, and what it said."""
    environment = {
        "PATH": os.environ["PATH"],
        "ENV0_S3_LOG_BUCKET_NAME": bucket,
        "ENV0_S3_LOG_AWS_REGION": REGION,
        "ENV0_S3_LOG_FORCE_PATH_STYLE": "true",
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": keys["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"],
    }
    done = subprocess.run([str(BINARY), "verify"], env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def auditors_policy(client, stack):
    """The ARN of the policy that a stack made for auditors, and its document."""
    made = client("cloudformation").list_stack_resources(StackName=stack)["StackResourceSummaries"]
    (arn,) = (one["PhysicalResourceId"] for one in made if one["LogicalResourceId"] == "AuditorPolicy")
    return arn, client("iam").get_policy_version(PolicyArn=arn, VersionId="v1")["PolicyVersion"]["Document"]


def check_auditor(client, port):
    """The auditor's policy is config/auditor-policy.json, `verify` needs no more, and less is not enough."""
    bucket = "there-already"
    made = {"BucketName": bucket, "CreateBucket": "false", "Subject": SUBJECT, **NONE_MADE, "Auditor": "true"}
    make_stack(client, "auditor", **made)
    iam = client("iam")
    policy, document = auditors_policy(client, "auditor")
    document = json.loads(json.dumps(document).replace(bucket, BUCKET))
    check(document == config("auditor-policy.json"), f"the auditor may {document}")
    _, with_key = auditors_policy(client, "all")
    (decrypt,) = with_key["Statement"][2:]
    check(decrypt["Action"] == "kms:Decrypt", f"with a key the auditor may {with_key}")
    iam.create_user(UserName="auditor")
    keys = iam.create_access_key(UserName="auditor")["AccessKey"]
    iam.attach_user_policy(UserName="auditor", PolicyArn=policy)
    # moto asks for an action of this name, which AWS has not: there a Head needs s3:GetObject.
    head = {"Effect": "Allow", "Action": "s3:HeadObject", "Resource": "*"}
    head = json.dumps({"Version": "2012-10-17", "Statement": [head]})
    iam.put_user_policy(UserName="auditor", PolicyName="of-moto", PolicyDocument=head)
    iam.create_user(UserName="stranger")
    stranger = iam.create_access_key(UserName="stranger")["AccessKey"]
    # From here on moto judges every request by its signer's policies.
    reset = urllib.request.Request(f"http://127.0.0.1:{port}/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"})
    urllib.request.urlopen(reset, timeout=10).close()
    code, said = verify(port, bucket, keys)
    check(code == 0 and "1 object" in said, f"verify with the auditor's policy ends with {code}: {said}")
    code, said = verify(port, bucket, stranger)
    check(code == 77 and "grant s3:ListBucket" in said, f"verify without a policy ends with {code}: {said}")


def check_bucket():
    """moto's templates know few of a bucket's properties, so they are read from the template."""
    template, errors = cfnlint.decode.decode(str(TEMPLATE))
    check(not errors, errors)
    bucket = template["Resources"]["Bucket"]
    check(bucket["UpdateReplacePolicy"] == "Retain", "replacing the bucket deletes the logs")
    # After a making that failed nothing may be left of it: the next one would find the name taken.
    check(bucket["DeletionPolicy"] == "RetainExceptOnCreate", "deleting the stack deletes the logs, or a failed one keeps the bucket")
    properties = bucket["Properties"]
    blocked = properties["PublicAccessBlockConfiguration"]
    check(len(blocked) == 4 and all(blocked.values()), f"public access: {blocked}")
    check(properties["VersioningConfiguration"]["Status"] == "Enabled", "no versioning")
    check("BucketEncryption" in properties, "no encryption")


def token():
    """An unsigned one: moto looks at no token."""
    claims = {"iss": "https://login.app.env0.com/", "sub": SUBJECT, "azp": "a", "exp": int(time.time()) + 3600}
    parts = [json.dumps(part).encode() for part in ({"alg": "none"}, claims)]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts) + "."


@contextlib.contextmanager
def moto(folder):
    """The port of a moto server."""
    port = free_port()
    with (folder / "moto.log").open("wb") as output:
        command = [pathlib.Path(sys.executable).with_name("moto_server"), "-p", str(port)]
        server = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        wait_for("moto", lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5))
        yield port
    finally:
        server.terminate()
        server.wait(DEADLINE_SECONDS)


def aws_client(service, port):
    return boto3.client(
        service,
        REGION,
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id="any",
        aws_secret_access_key="any",
    )


@contextlib.contextmanager
def daemon(variables, port, folder):
    """A daemon that delivers to moto's port: its two listeners' ports."""
    ingest, admin = free_port(), free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "ENV0_OIDC_TOKEN": token(),
        "ENV0_S3_LOG_INGEST_TOKEN": TOKEN,
        "ENV0_S3_LOG_BATCH_MAX_AGE": "200ms",
        "ENV0_S3_LOG_LISTEN_ADDR": f"127.0.0.1:{ingest}",
        "ENV0_S3_LOG_ADMIN_ADDR": f"127.0.0.1:{admin}",
        "ENV0_S3_LOG_SPOOL_DIR": str(folder / "spool"),
        "ENV0_S3_LOG_FORCE_PATH_STYLE": "true",
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
        "AWS_ENDPOINT_URL_STS": f"http://127.0.0.1:{port}",
        **variables,
    }
    log = folder / "daemon.log"
    with log.open("wb") as output:
        process = subprocess.Popen([str(BINARY)], env=environment, stderr=output, stdin=subprocess.DEVNULL)
    try:
        wait_until_ready(process, log, admin)
        yield ingest, admin
    finally:
        process.terminate()
        process.wait(DEADLINE_SECONDS)


def deliver(client, variables, port, folder):
    with daemon(variables, port, folder) as (ingest, _):
        url = f"http://127.0.0.1:{ingest}/v1/logs/env0-audits"
        request = urllib.request.Request(url, data=EVENT, headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            key = json.load(answer)["object"]
        s3, bucket = client("s3"), variables["ENV0_S3_LOG_BUCKET_NAME"]
        wait_for("the object", lambda: s3.list_objects_v2(Bucket=bucket, Prefix=key).get("Contents"))
        stored = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        check(stored == EVENT, f"the object holds {stored!r}")


def check_existing_bucket(client, port, folder):
    """A bucket that is there already gets nothing but a role that may write to it."""
    bucket = "there-already"
    client("s3").create_bucket(Bucket=bucket)
    variables = make_stack(
        client, "existing", BucketName=bucket, CreateBucket="false", Subject=SUBJECT, **NONE_MADE
    )
    resources = client("cloudformation").list_stack_resources(StackName="existing")["StackResourceSummaries"]
    # moto lists what a condition leaves out, too, without its type.
    made = sorted(filter(None, (resource["ResourceType"] for resource in resources)))
    check(made == ["AWS::IAM::Role"], f"beside a bucket that is there already the template makes {made}")
    policy = role_policy(client, variables, "env0-s3-logs")
    wanted = json.loads(json.dumps(config("iam-policy.json")).replace(BUCKET, bucket))
    check(policy == wanted, f"the role may {json.dumps(policy)}")
    deliver(client, variables, port, folder)


def check_terraform():
    """The module's documents, with its defaults filled in, are those of config/*.json."""
    text = (ROOT / "config" / "aws" / "terraform" / "main.tf").read_text()
    for path in (ROOT / "config" / "aws" / "terraform").glob("*.tf"):
        with path.open() as file:
            hcl2.load(file)
    (wanted,) = config("trust-policy.json")["Statement"]
    for action in wanted["Action"]:
        check(f'"{action}"' in text, f"the module's trust policy lacks {action}")
    check('"${var.issuer}:aud" = var.audiences' in text, "the module's trust policy judges no audience")
    check('"${var.issuer}:sub" = local.subject' in text, "the module's trust policy judges no subject")
    pod = '? "system:serviceaccount:${var.service_account}" : var.subject'
    check(pod in text, "the module's subject is neither a pod's nor env0's")
    check(':oidc-provider/${var.issuer}"' in text, "the module's role trusts a provider of another issuer")
    check(re.search(r"permissions_boundary += var.permissions_boundary_arn\n", text), "the module's role has no boundary")
    for resource in re.findall(r'resource "aws_s3_\w+" "logs" \{\n(.*)', text):
        check("= var.create_bucket " in resource, f"made beside a bucket that is there already: {resource}")
    defaults = (ROOT / "config" / "aws" / "terraform" / "variables.tf").read_text()
    for audience in wanted["Condition"]["StringEquals"]["login.app.env0.com/:aud"]:
        check(f'"{audience}"' in defaults, f"the module's default lacks the audience {audience}")
    role, auditor = text.split('resource "aws_iam_policy" "auditor"')
    for name, part in (("iam-policy.json", role), ("auditor-policy.json", auditor)):
        allowed = re.findall(r'Action\s+= "(s3:\w+)"', part)
        check(allowed == [statement["Action"] for statement in config(name)["Statement"]], f"{name}: {allowed}")
    check(re.findall(r'"(kms:\w+)"', auditor) == ["kms:Decrypt"], "the module's auditor decrypts nothing")
    (logs,) = config("cloudwatch-policy.json")["Statement"]
    allowed = re.findall(r'"(logs:\w+)"', text)
    check(allowed == logs["Action"], f"allowed: {allowed}")
    groups = [resource.split(":log-group:")[1] for resource in logs["Resource"]]
    check(re.findall(r'"\$\{local\.log_groups\}(\S+)"', text) == groups, "the module's log groups are others")


def main():
    warnings.simplefilter("ignore")
    subprocess.run([pathlib.Path(sys.executable).with_name("cfn-lint"), TEMPLATE], check=True)
    check_bucket()
    check_terraform()
    with tempfile.TemporaryDirectory() as folder, moto(pathlib.Path(folder)) as port:

        def client(service):
            return aws_client(service, port)

        variables = make_stack(client, "logs", BucketName=BUCKET, Subject=SUBJECT, **NONE_MADE)
        check(set(variables) == {f"ENV0_S3_LOG_{name}" for name in ("ROLE_ARN", "BUCKET_NAME", "AWS_REGION")}, variables)
        check_role(client, variables)
        deliver(client, variables, port, pathlib.Path(folder))
        check_role_of_a_pod(client)
        check_cloudwatch(client)
        existing = pathlib.Path(folder) / "existing"
        existing.mkdir()
        check_existing_bucket(client, port, existing)
        everything = make_stack(
            client, "all", BucketName="all-of-it", Subject=SUBJECT, **NONE_MADE, ObjectLockDays="30",
            RetentionDays="400", ProjectId="0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9", KmsKeyArn="arn:aws:kms:us-east-1:111122223333:key/k",
            Auditor="true", PermissionsBoundaryArn=BOUNDARY,
        )
        role = client("iam").get_role(RoleName=everything["ENV0_S3_LOG_ROLE_ARN"].rsplit("/", 1)[1])["Role"]
        bound = role.get("PermissionsBoundary", {}).get("PermissionsBoundaryArn")
        check(bound == BOUNDARY, f"the role's permissions boundary is {bound}")
        check_auditor(client, port)
    print("  the template was made, and the daemon delivered with its outputs")


if __name__ == "__main__":
    main()
