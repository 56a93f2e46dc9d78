"""Generated: the broker's internal protos (proto/postbus/internal/v1), and KEDA's external scaler."""
