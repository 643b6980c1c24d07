variable "bucket_name" {
  description = "Name of the bucket"
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9](\\.?[a-z0-9-])*\\.?[a-z0-9]$", var.bucket_name)) && length(var.bucket_name) >= 3 && length(var.bucket_name) <= 63
    error_message = "bucket_name must be a bucket's name alone, such as acme-env0-logs: 3 to 63 small letters, digits, hyphens and single points."
  }

  validation {
    condition     = !can(regex("^((xn-|sthree|amzn-s3-demo)-.*|(\\d+\\.){3}\\d+|.*(-s3alias|--(ol|x|table)-s3|\\.mrap|\\.amazonaws\\.com(\\.cn)?))$", var.bucket_name))
    error_message = "bucket_name must be no host (.amazonaws.com) and no IP address, and have none of the beginnings and endings that S3 keeps for itself (xn--, -s3alias, --x-s3 and so on)."
  }

  validation {
    condition     = var.bucket_name != "my-env0-logs"
    error_message = "my-env0-logs is the example of the documents, and a bucket's name is unique in all of AWS; choose one with your company's name in it."
  }
}

variable "create_bucket" {
  description = "Whether the bucket is made; false for one that is there already, of which nothing is changed. The provider's region must be the bucket's"
  type        = bool
  default     = true
}

variable "subject" {
  description = "Whose tokens may assume the role: the sub of your env0 organization. env0 shows it under Organization Settings, Policies: tick \"Enable OIDC during deployments\", then click \"show\" beside it. Give this one or service_account"
  type        = string
  default     = null

  validation {
    condition     = var.subject == null || can(regex("^[A-Za-z0-9._-]+[|@][A-Za-z0-9._|@+=:/~-]+$", var.subject))
    error_message = "subject must be the sub of your env0 organization, such as auth0|0123456789abcdef01234567 (no organization's or project's id); a pod's service account is given in service_account."
  }

  validation {
    condition     = var.subject != "auth0|0123456789abcdef01234567"
    error_message = "this subject is the example of the documents; env0 shows yours under Organization Settings, Policies."
  }

  validation {
    condition     = (var.subject == null) != (var.service_account == null)
    error_message = "give subject, for the tokens of your env0 organization, or service_account, for a pod's own; one of the two."
  }

  # An identity provider of one's own may have such subjects, a cluster has not.
  validation {
    condition     = var.subject == null || !can(regex("^oidc\\.eks\\.|^container\\.googleapis\\.com/|\\.oic\\.prod-aks\\.azure\\.com/", var.issuer))
    error_message = "this issuer is a cluster's, whose tokens name a service account; give service_account in place of subject."
  }
}

variable "service_account" {
  description = "In subject's place, with a cluster's issuer: the pod whose own token may assume the role, as <namespace>:<service account>. The chart names the service account after the release"
  type        = string
  default     = null

  validation {
    condition     = var.service_account == null || can(regex("^[a-z0-9-]+:[a-z0-9.-]+$", var.service_account))
    error_message = "service_account must be <namespace>:<service account>, such as env0-agent:env0-s3-logs."
  }

  validation {
    condition     = var.service_account == null || var.issuer != "login.app.env0.com/"
    error_message = "a service_account's tokens are its cluster's; give the cluster's issuer, too."
  }
}

variable "issuer" {
  description = "The token issuer's URL without https://; env0's ends in a slash. For a pod's own token, the cluster's issuer, with service_account in subject's place"
  type        = string
  default     = "login.app.env0.com/"

  validation {
    condition     = can(regex("^[A-Za-z0-9.-]+(/[A-Za-z0-9._~%/-]*)?$", var.issuer)) && var.issuer != "login.app.env0.com"
    error_message = "issuer must be the issuer's URL without https:// in front; env0's is login.app.env0.com/ with the slash at its end."
  }
}

variable "audiences" {
  description = "What tokens are made out to. The default takes both forms of env0's tokens; a pod's own needs sts.amazonaws.com alone: -var 'audiences=[\"sts.amazonaws.com\"]'"
  type        = list(string)
  default     = ["hoMiq9PdkRh9LUvVpH4wIErWg50VSG1b", "sts.amazonaws.com"]

  validation {
    condition     = length(var.audiences) > 0 && alltrue([for audience in var.audiences : can(regex("^[A-Za-z0-9._~:/@+=-]+$", audience))])
    error_message = "audiences must be a list of one or more, such as [\"sts.amazonaws.com\"], each by itself and without spaces."
  }
}

variable "create_provider" {
  description = "Whether the issuer's OpenID Connect provider is made; false where this account has it already, as `aws iam list-open-id-connect-providers` tells"
  type        = bool
  default     = true
}

variable "project_id" {
  description = "The one env0 project whose deployments may assume the role; null for every project"
  type        = string
  default     = null

  validation {
    condition     = var.project_id == null || can(regex("^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", var.project_id))
    error_message = "project_id must be an env0 project's id, such as 0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f9, not its name; null (leave it out) takes every project."
  }
}

variable "retention_days" {
  description = "Objects of the bucket that is made are deleted after so many days; null keeps them for ever"
  type        = number
  default     = null

  validation {
    condition     = coalesce(var.retention_days, 1) >= 1 && coalesce(var.retention_days, 1) <= 2147483647
    error_message = "retention_days must be a number of days from 1 to 2147483647; null (leave it out) keeps objects for ever."
  }
}

variable "object_lock_days" {
  description = "For so many days nobody can change or delete an object of the bucket that is made (compliance mode); null turns Object Lock off"
  type        = number
  default     = null

  validation {
    condition     = coalesce(var.object_lock_days, 1) >= 1 && coalesce(var.object_lock_days, 1) <= 36500
    error_message = "object_lock_days must be a number of days from 1 to 36500; null (leave it out) turns Object Lock off."
  }
}

variable "kms_key_arn" {
  description = "ARN of the KMS key, in the region of the bucket, that encrypts the objects, also where the bucket is there already; null for S3's own keys"
  type        = string
  default     = null

  validation {
    condition     = var.kms_key_arn == null || can(regex("^arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+$", var.kms_key_arn))
    error_message = "kms_key_arn must be the key's own ARN, such as arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab, not an alias: a policy on an alias gives no right to its key; null (leave it out) takes S3's own keys."
  }
}

variable "permissions_boundary_arn" {
  description = "ARN of the policy that bounds the role, where your account asks for one; null for none"
  type        = string
  default     = null

  validation {
    condition     = var.permissions_boundary_arn == null || can(regex("^arn:aws[a-z-]*:iam::([0-9]{12}|aws):policy/[A-Za-z0-9+=,.@_/-]+$", var.permissions_boundary_arn))
    error_message = "permissions_boundary_arn must be a policy's ARN, such as arn:aws:iam::111122223333:policy/boundary; null (leave it out) for none."
  }
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

  validation {
    condition     = can(regex("^[A-Za-z0-9._/#-]*$", var.log_group_prefix))
    error_message = "log_group_prefix must be letters, digits, points, underscores, hyphens, / and # alone."
  }

  validation {
    condition     = var.log_group_prefix == "" || var.cloudwatch
    error_message = "log_group_prefix works only with cloudwatch = true."
  }
}

variable "auditor" {
  description = "Whether a policy is made for whoever runs verify: to list the bucket and read its objects, and nothing else. It is attached to nobody; attach it to the auditor's role or user"
  type        = bool
  default     = false
}
