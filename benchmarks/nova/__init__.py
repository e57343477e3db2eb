"""OpenStack Nova's own InstanceMapping, in an environment of its own: what a deployment without cellcache has today."""
