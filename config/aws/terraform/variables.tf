variable "bucket_name" {
  description = "Name of the bucket"
  type        = string
}

variable "create_bucket" {
  description = "Whether the bucket is made; false for one that is there already, of which nothing is changed"
  type        = bool
  default     = true
}

variable "subject" {
  description = "Whose tokens may assume the role: the sub of your env0 organization, as env0 shows it on its OIDC credential form; or, with a cluster's issuer, system:serviceaccount:<namespace>:<service account>"
  type        = string
}

variable "issuer" {
  description = "The token issuer's URL without https://; env0's ends in a slash. For a pod's own token, the cluster's issuer"
  type        = string
  default     = "login.app.env0.com/"
}

variable "audiences" {
  description = "What tokens are made out to. The default takes both forms of env0's tokens; a pod's own needs sts.amazonaws.com alone"
  type        = list(string)
  default     = ["hoMiq9PdkRh9LUvVpH4wIErWg50VSG1b", "sts.amazonaws.com"]
}

variable "provider_arn" {
  description = "ARN of the issuer's OpenID Connect provider, where this account has it already; null to make it"
  type        = string
  default     = null
}

variable "project_id" {
  description = "The one env0 project whose deployments may assume the role; null for every project"
  type        = string
  default     = null
}

variable "retention_days" {
  description = "Objects of the bucket that is made are deleted after so many days; null keeps them for ever"
  type        = number
  default     = null
}

variable "object_lock_days" {
  description = "For so many days nobody can change or delete an object of the bucket that is made (compliance mode); null turns Object Lock off"
  type        = number
  default     = null
}

variable "kms_key_arn" {
  description = "ARN of the KMS key that encrypts the objects, also where the bucket is there already; null for S3's own keys"
  type        = string
  default     = null
}

variable "cloudwatch" {
  description = "Whether the role may also write to CloudWatch Logs, in this region"
  type        = bool
  default     = false
}

variable "log_group_prefix" {
  description = "In front of the log groups' names, env0-deployments and env0-audits"
  type        = string
  default     = ""
}

variable "auditor" {
  description = "Whether a policy is made for whoever runs verify: to list the bucket and read its objects, and nothing else. It is attached to nobody; attach it to the auditor's role or user"
  type        = bool
  default     = false
}
