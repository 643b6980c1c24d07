# Everything that the daemon needs in AWS: the bucket, the OpenID Connect provider and the role.
#
#   module "env0_s3_logs" {
#     source      = "./config/aws/terraform"
#     bucket_name = "my-env0-logs"
#     subject     = "auth0|0123456789abcdef01234567"
#   }
#
# Its output `variables` is what the daemon is given. Or run this folder by itself:
#
#   terraform -chdir=config/aws/terraform init
#   terraform -chdir=config/aws/terraform apply -var bucket_name=my-env0-logs -var subject='auth0|0123456789abcdef01234567'
#   terraform -chdir=config/aws/terraform output -json variables
#
# `create_bucket = false` takes a bucket that is there already: nothing of it is changed, and the role gets its rights.
# The provider's region must be that bucket's then (`export AWS_REGION=REGION`), as the outputs name the provider's.
# An account has an issuer's provider only once. Where yours has env0's already, set `create_provider = false`.
terraform {
  # Validations look at other variables, which older ones refuse.
  required_version = ">= 1.9"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 6.0"
    }
  }
}

data "aws_partition" "here" {}

data "aws_region" "here" {}

data "aws_caller_identity" "here" {}

locals {
  partition    = data.aws_partition.here.partition
  account      = data.aws_caller_identity.here.account_id
  provider_arn = var.create_provider ? aws_iam_openid_connect_provider.issuer[0].arn : "arn:${local.partition}:iam::${local.account}:oidc-provider/${var.issuer}"
  subject      = var.service_account != null ? "system:serviceaccount:${var.service_account}" : var.subject
  bucket_arn   = "arn:${local.partition}:s3:::${var.bucket_name}"
  log_groups   = "arn:${local.partition}:logs:${data.aws_region.here.region}:${local.account}:log-group:${var.log_group_prefix}"
}

resource "aws_s3_bucket" "logs" {
  count               = var.create_bucket ? 1 : 0
  bucket              = var.bucket_name
  object_lock_enabled = var.object_lock_days != null

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_s3_bucket_public_access_block" "logs" {
  count                   = var.create_bucket ? 1 : 0
  bucket                  = aws_s3_bucket.logs[0].id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_server_side_encryption_configuration" "logs" {
  count  = var.create_bucket ? 1 : 0
  bucket = aws_s3_bucket.logs[0].id

  rule {
    bucket_key_enabled = var.kms_key_arn != null

    apply_server_side_encryption_by_default {
      sse_algorithm     = var.kms_key_arn != null ? "aws:kms" : "AES256"
      kms_master_key_id = var.kms_key_arn
    }
  }
}

resource "aws_s3_bucket_versioning" "logs" {
  count  = var.create_bucket ? 1 : 0
  bucket = aws_s3_bucket.logs[0].id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_object_lock_configuration" "logs" {
  count  = var.create_bucket && var.object_lock_days != null ? 1 : 0
  bucket = aws_s3_bucket.logs[0].id

  rule {
    default_retention {
      mode = "COMPLIANCE"
      days = var.object_lock_days
    }
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "logs" {
  count  = var.create_bucket && var.retention_days != null ? 1 : 0
  bucket = aws_s3_bucket.logs[0].id

  rule {
    id     = "expire"
    status = "Enabled"
    filter {}

    expiration {
      days = var.retention_days
    }

    noncurrent_version_expiration {
      noncurrent_days = 1
    }

    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }
  }
}

resource "aws_s3_bucket_policy" "logs" {
  count  = var.create_bucket ? 1 : 0
  bucket = aws_s3_bucket.logs[0].id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "TlsOnly"
      Effect    = "Deny"
      Principal = "*"
      Action    = "s3:*"
      Resource  = [local.bucket_arn, "${local.bucket_arn}/*"]
      Condition = { Bool = { "aws:SecureTransport" = "false" } }
    }]
  })
}

resource "aws_iam_openid_connect_provider" "issuer" {
  count          = var.create_provider ? 1 : 0
  url            = "https://${var.issuer}"
  client_id_list = var.audiences
}

resource "aws_iam_role" "logs" {
  name_prefix          = "env0-s3-logs-"
  description          = "env0-s3-logs writes log objects with it"
  permissions_boundary = var.permissions_boundary_arn

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid       = "Env0Deployments"
      Effect    = "Allow"
      Principal = { Federated = local.provider_arn }
      Action    = ["sts:AssumeRoleWithWebIdentity", "sts:TagSession"]
      Condition = {
        StringEquals = merge(
          {
            "${var.issuer}:aud" = var.audiences
            "${var.issuer}:sub" = local.subject
          },
          var.project_id != null ? { "aws:RequestTag/projectId" = var.project_id } : {}
        )
      }
    }]
  })

  lifecycle {
    precondition {
      condition     = var.create_bucket || (var.retention_days == null && var.object_lock_days == null)
      error_message = "retention_days and object_lock_days are for a bucket that is made; set them on yours yourself."
    }
  }
}

resource "aws_iam_role_policy" "logs" {
  name = "env0-s3-logs"
  role = aws_iam_role.logs.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [
        {
          Sid      = "WriteLogs"
          Effect   = "Allow"
          Action   = "s3:PutObject"
          Resource = "${local.bucket_arn}/*"
        },
        {
          Sid      = "FindTheRegion"
          Effect   = "Allow"
          Action   = "s3:GetBucketLocation"
          Resource = local.bucket_arn
        }
      ],
      var.kms_key_arn != null ? [
        {
          Sid      = "EncryptLogs"
          Effect   = "Allow"
          Action   = "kms:GenerateDataKey"
          Resource = var.kms_key_arn
        }
      ] : []
    )
  })
}

resource "aws_iam_role_policy" "cloudwatch" {
  count = var.cloudwatch ? 1 : 0
  name  = "env0-s3-logs-cloudwatch"
  role  = aws_iam_role.logs.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Sid    = "WriteEvents"
      Effect = "Allow"
      Action = [
        "logs:CreateLogGroup",
        "logs:CreateLogStream",
        "logs:DescribeLogGroups",
        "logs:DescribeLogStreams",
        "logs:PutLogEvents"
      ]
      Resource = [
        "${local.log_groups}env0-deployments",
        "${local.log_groups}env0-deployments:*",
        "${local.log_groups}env0-audits",
        "${local.log_groups}env0-audits:*"
      ]
    }]
  })
}

resource "aws_iam_policy" "auditor" {
  count       = var.auditor ? 1 : 0
  name_prefix = "env0-s3-logs-auditor-"
  description = "env0-s3-logs verify reads with it"

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [
        {
          Sid      = "ListLogs"
          Effect   = "Allow"
          Action   = "s3:ListBucket"
          Resource = local.bucket_arn
        },
        {
          Sid      = "ReadLogs"
          Effect   = "Allow"
          Action   = "s3:GetObject"
          Resource = "${local.bucket_arn}/*"
        }
      ],
      var.kms_key_arn != null ? [
        {
          Sid      = "DecryptLogs"
          Effect   = "Allow"
          Action   = "kms:Decrypt"
          Resource = var.kms_key_arn
        }
      ] : []
    )
  })
}
