output "variables" {
  description = "The daemon's variables"
  value = {
    ENV0_S3_LOG_ROLE_ARN    = aws_iam_role.logs.arn
    ENV0_S3_LOG_BUCKET_NAME = aws_s3_bucket.logs.bucket
    ENV0_S3_LOG_AWS_REGION  = data.aws_region.here.region
  }
}
