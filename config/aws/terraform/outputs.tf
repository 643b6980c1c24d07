output "variables" {
  description = "The daemon's variables"
  value = merge(
    {
      ENV0_S3_LOG_ROLE_ARN    = aws_iam_role.logs.arn
      ENV0_S3_LOG_BUCKET_NAME = var.create_bucket ? aws_s3_bucket.logs[0].bucket : var.bucket_name
      ENV0_S3_LOG_AWS_REGION  = data.aws_region.here.region
    },
    var.cloudwatch ? {
      ENV0_CLOUDWATCH_ROLE_ARN              = aws_iam_role.logs.arn
      ENV0_CLOUDWATCH_AWS_REGION            = data.aws_region.here.region
      ENV0_CLOUDWATCH_LOG_GROUP_NAME_PREFIX = var.log_group_prefix
    } : {}
  )
}

output "auditor_policy_arn" {
  description = "The policy for whoever runs verify; null without it"
  value       = one(aws_iam_policy.auditor[*].arn)
}
